"""Time per token of GPT-2, generating greedily, beside every peer, in one interleaved run on this machine's CPU.

    make peers                                           # an environment of its own, .venv-peers
    .venv-peers/bin/python scripts/bench_generate.py --out docs/measurements/generate

A peer's time per token is that of N new tokens less that of one, divided by N-1: the prompt does not count. A case is
B rows, a prompt of P tokens, N new ones. Random weights of GPT-2's size: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bench_export import CONFIGS
from peers import prepare
from workers import Measure, interleave, serve, start, versions

Case = tuple[int, int, int]  # rows, tokens of the prompt, new tokens
Generate = Callable[[np.ndarray, int], object]  # ids (B,P) and how many new tokens
CASES: list[Case] = [(1, 16, 48), (8, 16, 32), (1, 960, 48)]
PACKAGES = ("gptexport", "onnxruntime", "torch", "transformers", "ctranslate2")
FLOAT32 = ("CTranslate2", "transformers.generate", "eager with a cache")


def gptexport(folder: Path) -> Generate:
    from gptexport_runtime import load

    session = load(folder, "cpu")
    return lambda ids, count: session.generate(ids, max_new_tokens=count, temperature=0)


def transformers_generate(folder: Path) -> Generate:
    model, torch = _transformers(folder)

    def run(ids: np.ndarray, count: int) -> object:
        tensor = torch.from_numpy(ids)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return model.generate(tensor, attention_mask=torch.ones_like(tensor), **options)

    return run


def eager(folder: Path) -> Generate:
    model, torch = _transformers(folder)

    def run(ids: np.ndarray, count: int) -> object:
        new, cache = torch.from_numpy(ids), None
        with torch.inference_mode():
            for _ in range(count):
                out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                new, cache = out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values
        return new

    return run


def _transformers(folder: Path) -> tuple:
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    return transformers.GPT2LMHeadModel.from_pretrained(folder / "hf").eval(), torch


def ctranslate2(folder: Path, compute_type: str) -> Generate:
    import ctranslate2 as ct2

    generator = ct2.Generator(
        str(folder / "ct2"), device="cpu", compute_type=compute_type, intra_threads=os.cpu_count()
    )

    def run(ids: np.ndarray, count: int) -> object:
        rows = [[f"t{i}" for i in row] for row in ids.tolist()]
        lengths = {"max_length": count, "min_length": count}
        return generator.generate_batch(rows, beam_size=1, include_prompt_in_result=False, **lengths)

    return run


PEERS: dict[str, Callable[[Path], Generate]] = {
    "gptexport portable": lambda folder: gptexport(folder / "portable"),
    "gptexport cpu": lambda folder: gptexport(folder / "cpu"),
    "gptexport int8": lambda folder: gptexport(folder / "int8"),
    "eager with a cache": eager,
    "transformers.generate": transformers_generate,
    "CTranslate2": lambda folder: ctranslate2(folder, "float32"),
    "CTranslate2 int8": lambda folder: ctranslate2(folder, "int8"),
}


def timed(name: str, folder: Path) -> Measure:
    generate = PEERS[name](folder)
    vocab_size = json.loads((folder / "hf" / "config.json").read_text())["vocab_size"]

    def measure(B: int, P: int, N: int) -> float:
        ids = np.random.default_rng(0).integers(0, vocab_size, (B, P))
        times = []
        for count in (1, N):
            began = time.perf_counter()
            generate(ids, count)
            times.append(time.perf_counter() - began)
        return (times[1] - times[0]) / (N - 1)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CONFIGS, default="124M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="some of: " + ", ".join(PEERS))
    parser.add_argument("--folder", type=Path, help="with everybody's files, as an earlier run wrote them")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: timed(args.worker[0], Path(args.worker[1])))
        return
    names = args.only.split(",") if args.only else list(PEERS)
    longest = CONFIGS[args.size].block_size
    cases = [case for case in CASES if case[1] + case[2] <= longest]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if args.folder is None:
            prepare(folder, args.size)
        workers, missing = start(__file__, names, folder)
        seconds, peaks = interleave(workers, cases, args.rounds)
        bandwidth = read_bandwidth()
        sizes = {name: (folder / name.split()[-1] / "weights.data").stat().st_size for name in names if name in OWN}
    report = summarize(args, seconds, peaks, missing, bandwidth, sizes)
    print(report["markdown"])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(str(report.pop("markdown")) + "\n")
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


OWN = [name for name in PEERS if name.startswith("gptexport")]


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


def summarize(
    args: argparse.Namespace,
    seconds: dict[Case, dict[str, list[float]]],
    peaks: dict[str, float],
    missing: dict[str, str],
    bandwidth: float,
    sizes: dict[str, int],
) -> dict[str, object]:
    installed = versions(PACKAGES)
    lines = [
        f"GPT-2 {args.size}, {os.cpu_count()} {platform.machine()} cores, greedy, {args.rounds} interleaved rounds.",
        "Median milliseconds a step, which gives every row a token.",
        ", ".join(f"{name} {value}" for name, value in installed.items()) + ".",
        "",
        "| rows, prompt | " + " | ".join(peaks) + " |",
        "|---" * (len(peaks) + 1) + "|",
    ]
    data = []
    for (B, P, N), by_name in seconds.items():
        medians = {name: statistics.median(each) for name, each in by_name.items()}
        lines.append(f"| {B}, {P} | " + " | ".join(f"{1e3 * median:.2f}" for median in medians.values()) + " |")
        data += [{"B": B, "P": P, "N": N, "name": name, "seconds": each} for name, each in by_name.items()]
    lines.append("| peak MB | " + " | ".join(f"{peak * 1.048576:.0f}" for peak in peaks.values()) + " |")
    lines.append("")
    for (B, P, _), by_name in seconds.items():
        for own, others in (("gptexport cpu", FLOAT32), ("gptexport int8", ("CTranslate2 int8",))):
            medians = {name: statistics.median(by_name[name]) for name in others if name in by_name}
            if own in by_name and medians:
                fastest = min(medians, key=medians.__getitem__)
                ratio = statistics.median(a / b for a, b in zip(by_name[fastest], by_name[own], strict=True))
                share = sizes[own] / statistics.median(by_name[own]) / bandwidth
                lines.append(
                    f"- {own}, {B} rows behind {P}: {ratio:.2f}× {fastest}; reading its weights alone takes "
                    f"{100 * share:.0f} % of the step at the {bandwidth / 1e9:.1f} GB/s that memory gives here."
                )
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in missing.items()]
    found = {"versions": installed, "missing": missing, "peak_mib": peaks, "read_bytes_per_s": bandwidth}
    return {**found, "timings": data, "markdown": "\n".join(lines)}


if __name__ == "__main__":
    main()
