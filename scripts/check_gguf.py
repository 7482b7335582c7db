"""What `gptexport gguf` writes, run by llama.cpp: its logits beside eager PyTorch's, and its greedy text beside ours.

    make peers && .venv-peers/bin/python -m pip install llama-cpp-python gguf    # compiles llama.cpp, some minutes
    .venv-peers/bin/python -m scripts.check_gguf --out docs/measurements/gguf

Small models of random weights, by transformers, and each as F32, F16 and Q8_0. Logits: the RMS of the difference, over
the RMS of eager's logits. Greedy: 50 prompts of 1 to 20 ids, 20 new ones each; where the two part, it is a tie if
eager's two best logits are nearer than 1e-4 of their RMS. Exit code 1: in F32 a model differs by more than 1e-3, which
is what llama.cpp's GELU of 16 bits leaves, or its text by more than ties.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.converters.gguf import write_gguf
from scripts.bench.tables import options, table, write
from scripts.bench.workers import versions

V, BLOCK, PROMPTS, NEW = 97, 64, 50, 20
LIMIT, TIE = 1e-3, 1e-4
SIZES = {"vocab_size": V, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": BLOCK}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {"n_positions": BLOCK}),
    "Llama": ("Llama", {"num_key_value_heads": 2}),
    "Llama, tied, heads of 32": ("Llama", {"tie_word_embeddings": True, "head_dim": 32}),
    "Llama with biases": ("Llama", {"attention_bias": True}),
    "Llama 3.1": ("Llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}}),
    "Llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}}),
    "Mistral": ("Mistral", {"sliding_window": None, "num_key_value_heads": 2}),
    "Qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "Qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
}


def main() -> int:
    torch.set_num_threads(1)
    args = options(__doc__, writes="OUT.md and OUT.json", rounds=1).parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for name, (kind, config) in MODELS.items():
            loaded = make(kind, config, Path(temporary) / name)
            for dtype in ("float32", "float16", "q8_0"):
                path = Path(temporary) / f"{name} {dtype}.gguf"
                write_gguf(loaded, path, dtype=dtype)
                error, same, ties, other = compare(loaded, LlamaCpp(path))
                rows.append([name, dtype, f"{error:.1e}", f"{same}", f"{ties}", f"{other}"])
                if dtype == "float32" and (error > LIMIT or other):
                    wrong.append(name)
    of = ", ".join(
        f"{package} {version}" for package, version in versions(("gptexport", "llama-cpp-python", "gguf")).items()
    )
    lines = [
        "# What llama.cpp makes of `gptexport gguf`",
        "",
        f"By `scripts/check_gguf.py`: {of}. Weights are random, so that",
        "tokens are nearly as probable as one another: rounding changes a text much sooner than a trained model's.",
        "",
    ]
    header = ["model", "stored as", "logits differ by", "the same text, of 50", "part at a tie", "part elsewhere"]
    write(args.out, [*lines, *table(header, rows)], {"rows": rows})
    for name in wrong:
        print(f"WRONG: {name}", file=sys.stderr)
    return int(bool(wrong))


def make(kind: str, config: dict[str, Any], folder: Path) -> Checkpoint:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")
    if kind == "GPT2":
        sizes = {"vocab_size": V, "n_embd": 64, "n_layer": 3, "n_head": 4}
        model: Any = transformers.GPT2LMHeadModel(made(**sizes, **config))
    else:
        model = getattr(transformers, f"{kind}ForCausalLM")(made(**SIZES, **config))
    for parameter in model.parameters():  # as initialized all logits are alike
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.3)
    model.save_pretrained(folder)
    return load_checkpoint(str(folder))


class LlamaCpp:
    """A row of text in llama.cpp, with keys and values kept in float32. One thread: the models are small."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._model: Any = llama_cpp.Llama(
            str(path), n_ctx=BLOCK, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, type_k=0, type_v=0
        )

    def begin(self, row: list[int]) -> None:
        self._model.reset()
        self._model.eval(row)

    def append(self, token: int) -> None:
        self._model.eval([token])

    def logits(self) -> np.ndarray:
        """(T,V), of all tokens so far."""
        return np.array(self._model.scores[: self._model.n_tokens], np.float32)


def compare(loaded: Checkpoint, theirs: LlamaCpp) -> tuple[float, int, int, int]:
    """The relative RMS of the difference; texts that are the same, that part at a tie, and elsewhere."""
    generator = np.random.default_rng(0)
    squares = np.zeros(2)
    same = ties = other = 0
    for _ in range(PROMPTS):
        row = generator.integers(0, V, int(generator.integers(1, 21))).tolist()
        theirs.begin(row)
        for _ in range(NEW):
            with torch.no_grad():
                ours = loaded.model(torch.tensor([row]))[0].numpy()
            got = theirs.logits()
            squares += np.square(got - ours).mean(), np.square(ours).mean()
            second, best = np.sort(ours[-1])[-2:]
            token = int(ours[-1].argmax())
            if token != int(got[-1].argmax()):
                tie = bool(best - second < TIE * np.sqrt(np.square(ours).mean()))
                ties, other = ties + tie, other + (not tie)
                break
            row.append(token)
            theirs.append(token)
        else:
            same += 1
    return float(np.sqrt(squares[0] / squares[1])), same, ties, other


if __name__ == "__main__":
    sys.exit(main())
