"""Time per token of GPT-2, generating greedily, beside every peer, in one interleaved run on this machine's CPU.

    make peers                                           # an environment of its own, .venv-peers
    .venv-peers/bin/python -m scripts.bench.generate --out docs/measurements/generate

A peer's time per token is that of N new tokens less that of one, divided by N-1: the prompt does not count. A case is
B rows, a prompt of P tokens, N new ones. Random weights of GPT-2's size: speed does not depend on them.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.files import context_of, files_of, prepare, vocab_size
from scripts.bench.models import SIZES
from scripts.bench.peers import generate_by_llama_cpp, open_ctranslate2, open_llama_cpp
from scripts.bench.tables import machine, options, speed, table, write
from scripts.bench.workers import Measure, Seconds, interleave, module, parse_or_serve, running, versions

Case = tuple[int, int, int]  # rows, tokens of the prompt, new tokens
Generate = Callable[[np.ndarray, int], object]  # ids (B,P) and how many new tokens
CASES: list[Case] = [(1, 16, 48), (8, 16, 32), (1, 960, 48)]
PACKAGES = ("gptexport", "onnxruntime", "torch", "transformers", "ctranslate2", "llama-cpp-python")
OTHERS = {  # of the same precision
    "gptexport cpu": ("CTranslate2", "transformers.generate", "eager with a cache"),
    "gptexport int8": ("CTranslate2 int8", "llama.cpp Q8_0"),
    "gptexport int8w": ("gptexport int8", "llama.cpp Q8_0"),
    "gptexport int4": ("gptexport int8", "llama.cpp Q4_0"),
    "gptexport int8 cache": ("gptexport int8", "llama.cpp Q8_0"),
    "gptexport int4 cache": ("gptexport int4", "llama.cpp Q4_0"),
}


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json")
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--only", help="some of: " + ", ".join(PEERS))
    parser.add_argument("--cases", help="BxPxN,…: rows, tokens of the prompt, new tokens")
    parser.add_argument("--folder", type=Path, help="with every peer's files, as an earlier run wrote them")
    args = parse_or_serve(parser, timed)
    names = args.only.split(",") if args.only else list(PEERS)
    asked = [case_of(case) for case in args.cases.split(",")] if args.cases else CASES
    cases = [case for case in asked if case[1] + case[2] <= SIZES[args.size].block_size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if args.folder is None:
            prepare(folder, args.size, names)
        with running(module("scripts.bench.generate"), names, folder) as workers:
            seconds, peaks = interleave(workers.started, cases, args.rounds)
        bandwidth = read_bandwidth()
        sizes = {name: (folder / files_of(name)[0] / "weights.data").stat().st_size for name in names if name in OWN}
    lines = [
        f"GPT-2 {args.size}, {machine()}, greedy, {args.rounds} interleaved rounds.",
        "Median milliseconds a step, which gives every row a token.",
        ", ".join(f"{name} {value}" for name, value in versions(PACKAGES).items()) + ".",
        "",
        *steps(seconds, peaks),
        "",
        *beside_peers(seconds, sizes, bandwidth),
        *(f"\nNot measured: {name}: {reason}" for name, reason in workers.missing.items()),
    ]
    rows = [
        {"B": B, "P": P, "N": N, "name": name, "seconds": each}
        for (B, P, N), by_name in seconds.items()
        for name, each in by_name.items()
        if not math.isnan(each[0])
    ]
    found = {"versions": versions(PACKAGES), "missing": workers.missing, "peak_mib": peaks}
    write(args.out, lines, {**found, "read_bytes_per_s": bandwidth, "timings": rows})


def case_of(text: str) -> Case:
    B, P, N = map(int, text.split("x"))
    return B, P, N


def gptexport(folder: Path) -> Generate:
    from gptexport_runtime import load

    session = load(folder, "cpu")
    return lambda ids, count: session.generate(ids, max_new_tokens=count, temperature=0)


def transformers_generate(folder: Path) -> Generate:
    import torch

    model = open_transformers(folder)

    def run(ids: np.ndarray, count: int) -> object:
        tensor = torch.from_numpy(ids)
        lengths = {"max_new_tokens": count, "min_new_tokens": count}
        return model.generate(
            tensor, attention_mask=torch.ones_like(tensor), do_sample=False, pad_token_id=0, **lengths
        )

    return run


def eager(folder: Path) -> Generate:
    import torch

    model = open_transformers(folder)

    def run(ids: np.ndarray, count: int) -> object:
        new, cache = torch.from_numpy(ids), None
        with torch.inference_mode():
            for _ in range(count):
                out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                new, cache = out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values
        return new

    return run


def open_transformers(folder: Path) -> Any:
    """A transformers.GPT2LMHeadModel on all cores; its `generate` has no types."""
    import transformers

    return transformers.GPT2LMHeadModel.from_pretrained(folder / "hf").eval()


def ctranslate2(folder: Path, compute_type: str) -> Generate:
    generator = open_ctranslate2(folder, compute_type)

    def run(ids: np.ndarray, count: int) -> object:
        rows = [[f"t{i}" for i in row] for row in ids.tolist()]
        lengths = {"max_length": count, "min_length": count}
        return generator.generate_batch(rows, beam_size=1, include_prompt_in_result=False, **lengths)

    return run


def llama_cpp(folder: Path, kind: str) -> Generate:
    """llama.cpp, of one row."""
    model = open_llama_cpp(folder / f"{kind}.gguf", context_of(folder))
    return lambda ids, count: generate_by_llama_cpp(model, ids, count)


PEERS: dict[str, Callable[[Path], Generate]] = {
    "gptexport portable": lambda folder: gptexport(folder / "portable"),
    "gptexport cpu": lambda folder: gptexport(folder / "cpu"),
    "gptexport int8": lambda folder: gptexport(folder / "int8"),
    "gptexport int8w": lambda folder: gptexport(folder / "int8w"),
    "gptexport int4": lambda folder: gptexport(folder / "int4"),
    "gptexport int8 cache": lambda folder: gptexport(folder / "int8-cache"),
    "gptexport int4 cache": lambda folder: gptexport(folder / "int4-cache"),
    "eager with a cache": eager,
    "transformers.generate": transformers_generate,
    "CTranslate2": lambda folder: ctranslate2(folder, "float32"),
    "CTranslate2 int8": lambda folder: ctranslate2(folder, "int8"),
    "llama.cpp Q8_0": lambda folder: llama_cpp(folder, "Q8_0"),
    "llama.cpp Q4_0": lambda folder: llama_cpp(folder, "Q4_0"),
}
OWN = [name for name in PEERS if name.startswith("gptexport")]


def timed(name: str, folder: Path) -> Measure:
    """Seconds a new token of a peer, of B rows behind P tokens."""
    generate, V = PEERS[name](folder), vocab_size(folder)

    def measure(B: int, P: int, N: int) -> float:
        ids = np.random.default_rng(0).integers(0, V, (B, P))
        times = []
        for count in (1, 1, N):  # the first finds memory and caches as another process left them
            began = time.perf_counter()
            try:
                generate(ids, count)
            except NotImplementedError:
                return float("nan")
            times.append(time.perf_counter() - began)
        return (times[2] - times[1]) / (N - 1)

    return measure


def read_bandwidth(size: int = 1 << 28, tries: int = 9) -> float:
    """Bytes a second that all cores together read from memory, the median of some tries over 1 GiB."""
    cores = os.cpu_count() or 1
    parts = [np.random.default_rng(0).random(size // cores, np.float32) for _ in range(cores)]
    rates = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(tries):
            began = time.perf_counter()
            list(pool.map(lambda part: float(part.max()), parts))
            rates.append(sum(part.nbytes for part in parts) / (time.perf_counter() - began))
    return statistics.median(rates)


def steps(seconds: Seconds[Case], peaks: Mapping[str, float]) -> list[str]:
    rows = [
        [f"{B}, {P}", *(_milliseconds(each) for each in by_name.values())] for (B, P, _), by_name in seconds.items()
    ]
    peak = ["peak MB", *(f"{peak * 1.048576:.0f}" for peak in peaks.values())]
    return table(["rows, prompt", *peaks], [*rows, peak])


def _milliseconds(seconds: list[float]) -> str:
    return "–" if math.isnan(seconds[0]) else f"{1e3 * statistics.median(seconds):.2f}"


def beside_peers(seconds: Seconds[Case], sizes: Mapping[str, int], bandwidth: float) -> list[str]:
    """Beside the fastest peer of the same precision, and beside what reading the weights alone takes."""
    lines = []
    for (B, P, _), by_name in seconds.items():
        for own, others in OTHERS.items():
            measured = {name: by_name[name] for name in others if name in by_name and not math.isnan(by_name[name][0])}
            medians = {name: statistics.median(each) for name, each in measured.items()}
            if own in by_name and medians:
                fastest = min(medians, key=medians.__getitem__)
                share = sizes[own] / statistics.median(by_name[own]) / bandwidth
                lines.append(
                    f"- {own}, {B} rows behind {P}: {speed(by_name[own], by_name[fastest]):.2f}× {fastest}; reading "
                    f"its weights alone takes {100 * share:.0f} % of the step at the {bandwidth / 1e9:.1f} GB/s that "
                    "memory gives here."
                )
    return lines


if __name__ == "__main__":
    main()
