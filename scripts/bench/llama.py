"""A Llama of GPT-2's size beside CTranslate2, llama.cpp and OpenVINO, in one interleaved run on this machine's CPU.

    make peers                                           # an environment of its own, .venv-peers
    .venv-peers/bin/python -m pip install llama-cpp-python gguf    # compiles llama.cpp, some minutes
    .venv-peers/bin/python -m scripts.bench.llama --out docs/measurements/llama

12 layers, 12 heads, C = 768, an MLP of 2048, V = 50257, tied: 124 M random weights, in float32 everywhere. A step is
one new token of one row: N new tokens less one, divided by N-1. Each peer is a process of its own; in every round each
runs once, in turn; ratios are medians of those within rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.files import CONVERT
from scripts.bench.peers import (
    Buffer,
    Run,
    generate_by_llama_cpp,
    logits_of_llama_cpp,
    open_llama_cpp,
    openvino,
)
from scripts.bench.processes import GPTEXPORT
from scripts.bench.tables import machine, options, speed, table, write
from scripts.bench.workers import Measure, interleave, module, parse_or_serve, running, versions

LOGITS, STEP = 0, 1
Case = tuple[int, int, int]  # all logits of 1xT: (0, T, 0); a step behind P tokens: (1, P, N new ones)
CASES: list[Case] = [(LOGITS, 128, 0), (STEP, 16, 32), (STEP, 512, 32)]
OWN = "gptexport cpu"
PACKAGES = ("gptexport", "onnxruntime", "torch", "openvino", "ctranslate2", "llama-cpp-python")
SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "intermediate_size": 2048,
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
}


@dataclass(frozen=True)
class Peer:
    """One runtime; what it cannot do is None."""

    logits: Run | None  # ids (B,T) to logits
    generate: Callable[[np.ndarray, int], object] | None  # ids (B,P) and how many new tokens


def write_hf(folder: Path) -> None:
    """A Hugging Face folder of random weights."""
    import transformers

    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_gguf(folder: Path, out: Path) -> None:
    """llama.cpp's file of the same weights. It turns neighbours, so q and k are another order of rows: as fast."""
    import gguf
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    V = SIZES["vocab_size"]
    writer.add_token_list([f"t{i}" for i in range(V)])
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([1] * V)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, weight in weights.items():
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            theirs = "token_embd.weight"
        elif name == "model.norm.weight":
            theirs = "output_norm.weight"
        else:
            theirs = f"blk.{parts[2]}.{names[parts[-2]]}.weight"
        writer.add_tensor(theirs, weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(folder: Path) -> None:
    """Every peer's files, each written by a process that ends."""
    hf = folder / "hf"
    hf.mkdir()
    here = [sys.executable, "-c"]
    own = "import sys, pathlib; from scripts.bench import llama; "
    export = [*GPTEXPORT, "onnx", str(hf), "-q", "-o"]
    steps = {
        "all": [*here, own + "llama.write_hf(pathlib.Path(sys.argv[1]))", str(hf)],
        OWN: [*export, str(folder / "cpu"), "--target", "cpu"],
        "OpenVINO": [*export, str(folder / "opset20.onnx"), "--opset", "20"],
        "CTranslate2": [*here, CONVERT, str(hf), str(folder / "ct2")],
        "llama.cpp": [
            *here,
            own + "llama.write_gguf(*map(pathlib.Path, sys.argv[1:]))",
            str(hf),
            str(folder / "llama.gguf"),
        ],
    }
    for peer, command in steps.items():
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"no files for {peer}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)


def open_gptexport(folder: Path) -> Peer:
    from gptexport_runtime import load

    gpt = load(folder / "cpu", "cpu")
    buffer = Buffer()
    return Peer(
        lambda ids: gpt.logits(ids, out=buffer.of((*ids.shape, gpt.config.vocab_size))),
        lambda ids, count: gpt.generate(ids, max_new_tokens=count, temperature=0, stop=()),
    )


def open_transformers(folder: Path) -> Peer:
    import torch
    import transformers

    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder / "hf").eval()

    def logits(ids: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), use_cache=False).logits

    def generate(ids: np.ndarray, count: int) -> object:
        new, cache = torch.from_numpy(ids), None
        with torch.inference_mode():
            for _ in range(count):
                out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                new, cache = out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values
        return new

    return Peer(logits, generate)


def open_ctranslate2(folder: Path) -> Peer:
    import ctranslate2 as ct2

    generator = ct2.Generator(str(folder / "ct2"), compute_type="float32", intra_threads=os.cpu_count())

    def logits(ids: np.ndarray) -> object:
        tokens = ct2.StorageView.from_array(ids.astype(np.int32))
        lengths = ct2.StorageView.from_array(np.full(len(ids), ids.shape[1], np.int32))
        return np.asarray(generator.forward_batch(tokens, lengths))

    def generate(ids: np.ndarray, count: int) -> object:
        rows = [[f"t{i}" for i in row] for row in ids.tolist()]
        lengths = {"max_length": count, "min_length": count}
        return generator.generate_batch(rows, beam_size=1, include_prompt_in_result=False, **lengths)

    return Peer(logits, generate)


def open_llama(folder: Path) -> Peer:
    model = open_llama_cpp(folder / "llama.gguf", SIZES["max_position_embeddings"])
    return Peer(partial(logits_of_llama_cpp, model), partial(generate_by_llama_cpp, model))


PEERS: dict[str, Callable[[Path], Peer]] = {
    OWN: open_gptexport,
    "eager transformers": open_transformers,
    "CTranslate2": open_ctranslate2,
    "llama.cpp": open_llama,
    "OpenVINO": lambda folder: Peer(openvino(folder), None),
}


def timed(name: str, folder: Path) -> Measure:
    """Seconds of all logits, or of a step; NaN where the peer cannot do it."""
    peer = PEERS[name](folder)

    def measure(kind: int, T: int, count: int) -> float:
        ids = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (1, T))
        logits, generate = peer.logits, peer.generate
        if kind == LOGITS:
            return float("nan") if logits is None else _seconds(partial(logits, ids))
        if generate is None:
            return float("nan")
        few, many = (_seconds(partial(generate, ids, new)) for new in (1, count))
        return (many - few) / (count - 1)

    return measure


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json")
    parser.add_argument("--folder", type=Path, help="with every peer's files, as an earlier run wrote them")
    args = parse_or_serve(parser, timed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if args.folder is None:
            prepare(folder)
        with running(module("scripts.bench.llama"), list(PEERS), folder) as workers:
            seconds, peaks = interleave(workers.started, CASES, args.rounds)
    load = os.getloadavg()[0]
    lines = [
        f"A Llama of 124 M, float32, {machine()}, {args.rounds} interleaved rounds.",
        f"Median milliseconds; in brackets the speed of {OWN} relative to that peer, median of paired ratios.",
        ", ".join(f"{name} {value}" for name, value in versions(PACKAGES).items()) + f". Load at the end: {load:.1f}.",
        "",
        *table(["", *peaks], [row_of(case, by_name) for case, by_name in seconds.items()]),
        *(f"\nNot measured: {name}: {reason}" for name, reason in workers.missing.items()),
    ]
    rows = [
        {"case": case, "name": name, "seconds": each} for case, one in seconds.items() for name, each in one.items()
    ]
    found = {"versions": versions(PACKAGES), "load": load, "missing": workers.missing, "peak_mib": peaks}
    write(args.out, lines, json.loads(json.dumps({**found, "timings": rows}).replace("NaN", "null")))


def row_of(case: Case, by_name: dict[str, list[float]]) -> list[str]:
    kind, T, _ = case
    cells = []
    for name, each in by_name.items():
        if any(value != value for value in each):  # NaN
            cells.append("–")
            continue
        beside = f" ({speed(by_name[OWN], each):.2f}×)" if name != OWN else ""
        cells.append(f"{1e3 * statistics.median(each):.1f}{beside}")
    return [f"1×{T}" if kind == LOGITS else f"a step behind {T}", *cells]


if __name__ == "__main__":
    main()
