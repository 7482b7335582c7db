"""What `gptexport onnx --layout genai` writes, run by onnxruntime-genai: its greedy texts beside a session's.

    make peers
    .venv-peers/bin/python -m scripts.check_genai --out docs/measurements/genai [CHECKPOINT ...]

Small models of random weights, by transformers, and the checkpoints that are named, each in every kind of export that a
CPU runs, quantized only what is named. 50 prompts of 1 to 20 ids, at most 20 new ones each: alone, and two at a time,
which pads the shorter; in one buffer, as the config says, and with target cpu in a cache that grows, as beam search has
it. Where a text parts from the session's, it is a tie if eager's logits of the two tokens are nearer than 1e-4 of their
RMS. What a portable graph refuses is tried and quoted. Exit code 1: a text differs by more than ties, or something was
taken that should not be.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import load
from scripts.bench.tables import options, table, write
from scripts.bench.workers import versions
from scripts.check_gguf import TIE, make

PROMPTS, NEW, PADDING = 50, 20, -1
SHARED, GROWS = {"past_present_share_buffer": True}, {"past_present_share_buffer": False}
ONE_BUFFER = [(1, SHARED), (2, SHARED)]  # the batch, and the cache
CASES: dict[str, tuple[dict[str, Any], list[tuple[int, dict[str, bool]]]]] = {  # by the name of an export
    "cpu": ({"target": "cpu"}, [*ONE_BUFFER, (1, GROWS), (2, GROWS)]),
    "cpu, int8": ({"quantize": "int8"}, ONE_BUFFER),
    "cpu, int4": ({"quantize": "int4"}, ONE_BUFFER),
    "portable, float16": ({"dtype": "float16"}, ONE_BUFFER),
    "portable": ({}, ONE_BUFFER),  # the last, which is asked for what it refuses
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {"n_positions": 64}),
    "Llama": ("Llama", {"num_key_value_heads": 2}),
    "Mistral, window of 8": ("Mistral", {"sliding_window": 8, "num_key_value_heads": 2}),
    "Qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
}
Rows = list[list[int]]


def main() -> int:
    torch.set_num_threads(1)
    parser = options(__doc__, writes="OUT.md and OUT.json", rounds=1)
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT")
    args = parser.parse_args()
    rows: list[list[str]] = []
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        made: dict[str, Callable[[], Checkpoint]] = {
            name: partial(make, kind, config, Path(temporary) / name) for name, (kind, config) in MODELS.items()
        }
        made |= {path: partial(load_checkpoint, path) for path in args.checkpoints}
        for name, loaded in ((name, each()) for name, each in made.items()):
            for target, (asked, cases) in CASES.items():
                if name in MODELS and "quantize" in asked:
                    continue  # random weights do not survive it
                bundle = Path(temporary) / f"{len(rows)}"
                export_onnx(loaded, bundle, layout="genai", **asked)
                for B, search in cases:
                    cache = "grows" if search is GROWS else "one buffer"
                    try:
                        counts = compare(loaded, bundle, B, search)
                    except RuntimeError:
                        if search is not GROWS:
                            raise
                        rows.append([name, target, f"{B}", cache, "refused", "", ""])
                        continue
                    rows.append([name, target, f"{B}", cache, *map(str, counts)])
                    wrong += [f"{name}, {target}, batch {B}, {cache}"] * bool(counts[-1])
        refused = [[what, said or "nothing"] for what, said in refusals(bundle)]
    wrong += [f"taken: {what}" for what, said in refused if said == "nothing"]
    named = versions(("gptexport", "onnxruntime", "onnxruntime-genai"))
    of = ", ".join(f"{package} {version}" for package, version in named.items())
    lines = ["# What onnxruntime-genai makes of `gptexport onnx --layout genai`", ""]
    lines += [f"By `scripts/check_genai.py`: {of}. Weights are", "random where no checkpoint is named.", ""]
    header = ["model", "export", "batch", "cache", f"as the session, of {PROMPTS}", "part at a tie", "part elsewhere"]
    lines += [*table(header, rows), "", *table(["asked of a portable graph", "what it says"], refused)]
    write(args.out, lines, {"rows": rows, "refused": refused})
    for each in wrong:
        print(f"WRONG: {each}", file=sys.stderr)
    return int(bool(wrong))


class GenAI:
    """A bundle in onnxruntime-genai."""

    def __init__(self, bundle: Path) -> None:
        import onnxruntime_genai

        self.package: Any = onnxruntime_genai
        self.model: Any = onnxruntime_genai.Model(str(bundle))

    def generate(self, prompts: Rows, count: int, **search: Any) -> Rows:
        """What follows each prompt: at most `count` ids, then padding where a row has ended before."""
        T = max(len(row) for row in prompts)
        asked = self.package.GeneratorParams(self.model)
        asked.set_search_options(max_length=T + count, batch_size=len(prompts), **search)
        generator = self.package.Generator(self.model, asked)
        ids = np.array([row + [PADDING] * (T - len(row)) for row in prompts], np.int32)
        generator.append_tokens(ids[0] if len(ids) == 1 else ids)
        while not generator.is_done():
            generator.generate_next_token()
        return [[int(i) for i in generator.get_sequence(row)[T:]] for row in range(len(prompts))]


def compare(loaded: Checkpoint, bundle: Path, B: int, search: dict[str, bool]) -> tuple[int, int, int]:
    """Of the prompts, `B` at a time: texts that are the session's, that part at a tie, and elsewhere."""
    session, theirs = load(bundle), GenAI(bundle)
    draw = np.random.default_rng(0)
    longest = min(20, loaded.block_size - 1)
    prompts = [draw.integers(0, loaded.vocab_size, draw.integers(1, longest + 1)).tolist() for _ in range(PROMPTS)]
    same = ties = other = 0
    for at in range(0, PROMPTS, B):
        batch = prompts[at : at + B]
        count = min(NEW, loaded.block_size - max(len(row) for row in batch))
        ours = session.generate(batch, max_new_tokens=count, temperature=0)
        for prompt, text, new in zip(batch, ours, theirs.generate(batch, count, **search), strict=True):
            got = _ended(new, loaded.text.eos_token_ids)
            if got == list(text):
                same += 1
            elif _is_tie(loaded, prompt, list(text), got):
                ties += 1
            else:
                other += 1
    return same, ties, other


def _ended(new: list[int], ends: Sequence[int]) -> list[int]:
    """As a session returns it: up to the id that ends the text."""
    return new[: next((at for at, i in enumerate(new) if i in ends), len(new))]


def _is_tie(loaded: Checkpoint, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Whether eager's logits of the two tokens where the texts part are as good as equal."""
    at = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if at is None:
        return False
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompt + ours[:at]]))[0, -1].numpy()
    return bool(abs(logits[ours[at]] - logits[theirs[at]]) < TIE * np.sqrt(np.square(logits).mean()))


def refusals(bundle: Path) -> list[tuple[str, str]]:
    """What cannot be had of a portable bundle, and what onnxruntime-genai says to it; empty: it was taken."""
    theirs = GenAI(bundle)
    asked: dict[str, Callable[[], object]] = {
        "beams": lambda: theirs.generate([[1, 2, 3]], 5, num_beams=2),
        "a cache that grows": lambda: theirs.generate([[1, 2, 3]], 5, **GROWS),
        "more tokens than block_size": lambda: theirs.generate([[1, 2, 3]], 100_000),
    }
    said = []
    for what, ask in asked.items():
        try:
            ask()
        except RuntimeError as error:
            said.append((what, str(error).splitlines()[0]))
        else:
            said.append((what, ""))
    return said


if __name__ == "__main__":
    sys.exit(main())
