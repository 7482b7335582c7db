"""Full logits of GPT-2 beside every peer, in one interleaved run on this machine's CPU.

    make peers                                        # an environment of its own, .venv-peers
    .venv-peers/bin/python scripts/bench_peers.py --out docs/measurements/cpu

Each peer is a process of its own. In every round each runs once, in turn, with the others idle; ratios are taken within
rounds, medians over them. A peer that is not installed, or fails, is named with the reason. Random weights of GPT-2's
size: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_export import CONFIGS
from peers import PEERS, prepare
from workers import Measure, interleave, serve, start, versions

from gptexport.bench import forward_flops, sgemm_rate
from gptexport.bench_chart import speed_chart
from gptexport.config import GPTConfig

Shape = tuple[int, int]
Seconds = dict[Shape, dict[str, list[float]]]  # by shape and peer, one for each round
OWN, BASELINE = "gptexport cpu", "eager"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CONFIGS, default="124M")
    parser.add_argument("--shapes", default="1x1,1x128,4x256,1x1024,8x512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="some of: " + ", ".join(PEERS))
    parser.add_argument("--out", type=Path, help="write OUT.md, OUT.json and OUT.svg")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: timed(args.worker[0], Path(args.worker[1])))
        return
    shapes = [(int(B), int(T)) for B, T in (shape.split("x") for shape in args.shapes.split(","))]
    names = args.only.split(",") if args.only else list(PEERS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.size)
        workers, missing = start(__file__, names, folder)
        seconds, peaks = interleave(workers, shapes, args.rounds)
    sgemm = sgemm_rate(os.cpu_count() or 1)
    report = summarize(seconds, peaks, missing, CONFIGS[args.size], args, sgemm)
    print(report["markdown"])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(str(report.pop("markdown")) + "\n")
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        args.out.with_suffix(".svg").write_text(chart(seconds, args.size))


def timed(name: str, folder: Path) -> Measure:
    """Seconds of one forward of a peer at (B,T)."""
    run = PEERS[name](folder)
    vocab_size = json.loads((folder / "hf" / "config.json").read_text())["vocab_size"]

    def measure(B: int, T: int) -> float:
        ids = np.random.default_rng(0).integers(0, vocab_size, (B, T))
        began = time.perf_counter()
        run(ids)
        return time.perf_counter() - began

    return measure


def summarize(
    seconds: Seconds,
    peaks: dict[str, float],
    missing: dict[str, str],
    config: GPTConfig,
    args: argparse.Namespace,
    sgemm: float,
) -> dict[str, object]:
    packages = ("gptexport", "onnxruntime", "torch", "openvino", "ctranslate2", "mobius-onnx")
    installed = versions(packages)
    lines = [
        f"GPT-2 {args.size}, {os.cpu_count()} {platform.machine()} cores, {args.rounds} interleaved rounds.",
        f"Median milliseconds; in brackets the speed relative to {BASELINE}, median of paired ratios.",
        ", ".join(f"{name} {value}" for name, value in installed.items()) + ".",
        "",
        "| B×T | " + " | ".join(peaks) + " |",
        "|---" * (len(peaks) + 1) + "|",
    ]
    data: list[dict[str, object]] = []
    for (B, T), by_name in seconds.items():
        cells = []
        base = by_name.get(BASELINE)
        for name, each in by_name.items():
            ratio = statistics.median(b / s for b, s in zip(base, each, strict=True)) if base else None
            median = statistics.median(each)
            cells.append(f"{1e3 * median:.0f}" + (f" ({ratio:.2f}×)" if ratio is not None else ""))
            flops = forward_flops(config, B, T) / median
            data.append({"B": B, "T": T, "name": name, "seconds": each, "speed_vs_eager": ratio, "flop_per_s": flops})
        lines.append(f"| {B}×{T} | " + " | ".join(cells) + " |")
    lines.append("| peak MB | " + " | ".join(f"{peak * 1.048576:.0f}" for peak in peaks.values()) + " |")
    rates = [(row["B"], row["T"], row["flop_per_s"]) for row in data if row["name"] == OWN]
    if rates:
        lines += [
            "",
            f"{OWN} reaches, of the {sgemm / 1e9:.0f} GFLOP/s of ONNX Runtime's own sgemm (1024×768×3072), "
            + ", ".join(f"{100 * rate / sgemm:.0f} % at {B}×{T}" for B, T, rate in rates)
            + ". Its speed relative to the fastest peer in float32, median of paired ratios: "
            + ", ".join(f"{ratio:.2f} ({name}) at {B}×{T}" for (B, T), (name, ratio) in beside_fastest(seconds).items())
            + ".",
        ]
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in missing.items()]
    found = {"versions": installed, "missing": missing, "peak_mib": peaks, "sgemm_flop_per_s": sgemm, "timings": data}
    return {**found, "markdown": "\n".join(lines)}


def beside_fastest(seconds: Seconds) -> dict[Shape, tuple[str, float]]:
    """By shape: the fastest peer in float32, and the speed of the CPU's graph relative to it."""
    found = {}
    for shape, by_name in seconds.items():
        peers = {
            name: each for name, each in by_name.items() if not name.startswith("gptexport") and "int8" not in name
        }
        if peers and OWN in by_name:
            fastest = min(peers, key=lambda name: statistics.median(peers[name]))
            pairs = zip(peers[fastest], by_name[OWN], strict=True)
            found[shape] = (fastest, statistics.median(theirs / ours for theirs, ours in pairs))
    return found


def chart(seconds: Seconds, size: str) -> str:
    """Everybody's speed relative to the baseline's, as bars."""
    speeds: dict[str, dict[str, tuple[float, str]]] = {}
    for (B, T), by_name in seconds.items():
        base = by_name.get(BASELINE) or next(iter(by_name.values()))
        speeds[f"{B}×{T}"] = {
            name: (
                statistics.median(b / s for b, s in zip(base, each, strict=True)),
                f"{1e3 * statistics.median(each):,.0f} ms",
            )
            for name, each in by_name.items()
        }
    return speed_chart(f"Logits of GPT-2 {size}, {os.cpu_count()} cores", BASELINE, speeds)


if __name__ == "__main__":
    main()
