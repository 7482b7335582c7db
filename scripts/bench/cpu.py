"""Full logits of GPT-2 beside every peer, in one interleaved run on this machine's CPU.

    make peers                                        # an environment of its own, .venv-peers
    .venv-peers/bin/python -m scripts.bench.cpu --out docs/measurements/cpu

Each peer is a process of its own. In every round each runs once, in turn, with the others idle; ratios are taken within
rounds, medians over them. A peer that is not installed, or fails, is named with the reason. Random weights of GPT-2's
size: speed does not depend on them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gptexport.architectures.gpt2 import forward_flops
from gptexport.bench.chart import Bar, speed_chart
from gptexport.bench.machine import sgemm_rate
from gptexport.bench.measure import ratio_of
from scripts.bench.files import prepare, vocab_size
from scripts.bench.intel import is_needed
from scripts.bench.models import SIZES
from scripts.bench.peers import PEERS
from scripts.bench.tables import Shape, machine, options, shapes_of, speed, table, write
from scripts.bench.workers import Measure, Seconds, interleave, module, parse_or_serve, running, versions

DEFAULT = [
    *("gptexport cpu", "gptexport int8", "gptexport openvino", "gptexport openvino bf16"),
    *("eager", "torch.compile", "OpenVINO", "OpenVINO bf16", "mobius", "CTranslate2", "CTranslate2 int8"),
]
NOT_FLOAT32 = ("int8", "bf16", "bf16 (our graph)")
OWN, BASELINE = ("gptexport cpu", "gptexport openvino"), "eager"  # ours: in float32
PACKAGES = ("gptexport", "onnxruntime", "torch", "openvino", "ctranslate2", "mobius-onnx")


def main() -> None:
    parser = options(__doc__, writes="OUT.md, OUT.json and OUT.svg")
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--shapes", type=shapes_of, default="1x1,1x128,4x256,1x1024,8x512")
    parser.add_argument("--only", help="some of: " + ", ".join(PEERS))
    args = parse_or_serve(parser, timed)
    names = args.only.split(",") if args.only else DEFAULT
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.size, names)
        with running(module("scripts.bench.cpu"), names, folder) as workers:
            seconds, peaks = interleave(workers.started, args.shapes, args.rounds)
    sgemm = sgemm_rate(os.cpu_count() or 1)
    rows = timings(seconds, args.size)
    lines = [
        f"GPT-2 {args.size}, {machine()}, {args.rounds} interleaved rounds.",
        f"Median milliseconds; in brackets the speed relative to {BASELINE}, median of paired ratios.",
        ", ".join(f"{name} {value}" for name, value in versions(PACKAGES).items()) + ".",
        "",
        *speeds(seconds, peaks),
        *reached(seconds, args.size, sgemm),
        *of_the_plugin(workers.started),
        *(f"\nNot measured: {name}: {reason}" for name, reason in workers.missing.items()),
    ]
    found = {"versions": versions(PACKAGES), "missing": workers.missing, "peak_mib": peaks, "sgemm_flop_per_s": sgemm}
    write(args.out, lines, {**found, "timings": rows})
    if args.out:
        args.out.with_suffix(".svg").write_text(chart(seconds, args.size))


def timed(name: str, folder: Path) -> Measure:
    """Seconds of one forward of a peer at (B,T)."""
    run, V = PEERS[name](folder), vocab_size(folder)

    def measure(B: int, T: int) -> float:
        ids = np.random.default_rng(0).integers(0, V, (B, T))
        began = time.perf_counter()
        run(ids)
        return time.perf_counter() - began

    return measure


def beside_baseline(by_name: Mapping[str, list[float]]) -> dict[str, float | None]:
    """Each peer's speed relative to the baseline's; None where that was not measured."""
    base = by_name.get(BASELINE)
    return {name: speed(each, base) if base else None for name, each in by_name.items()}


def timings(seconds: Seconds[Shape], size: str) -> list[dict[str, object]]:
    """One row a shape and peer, as OUT.json has it."""
    return [
        {
            "B": B,
            "T": T,
            "name": name,
            "seconds": by_name[name],
            "speed_vs_eager": ratio,
            "flop_per_s": forward_flops(SIZES[size], B, T) / statistics.median(by_name[name]),
        }
        for (B, T), by_name in seconds.items()
        for name, ratio in beside_baseline(by_name).items()
    ]


def speeds(seconds: Seconds[Shape], peaks: Mapping[str, float]) -> list[str]:
    rows = []
    for (B, T), by_name in seconds.items():
        cells = [
            f"{1e3 * statistics.median(by_name[name]):.0f}" + (f" ({ratio:.2f}×)" if ratio is not None else "")
            for name, ratio in beside_baseline(by_name).items()
        ]
        rows.append([f"{B}×{T}", *cells])
    return table(["B×T", *peaks], [*rows, ["peak MB", *(f"{peak * 1.048576:.0f}" for peak in peaks.values())]])


def reached(seconds: Seconds[Shape], size: str, sgemm: float) -> list[str]:
    """What our graphs in float32 reach of the machine's matrix product, and beside the fastest peer."""
    lines = []
    for own in OWN:
        shares = [
            f"{100 * forward_flops(SIZES[size], B, T) / statistics.median(by_name[own]) / sgemm:.0f} % at {B}×{T}"
            for (B, T), by_name in seconds.items()
            if own in by_name
        ]
        beside = beside_fastest(seconds, own)
        fastest = [f"{ratio:.2f} ({name}) at {B}×{T}" for (B, T), (name, ratio) in beside.items()]
        if shares:
            lines += [
                "",
                f"{own} reaches, of the {sgemm / 1e9:.0f} GFLOP/s of ONNX Runtime's own sgemm (1024×768×3072), "
                f"{', '.join(shares)}. Its speed relative to the fastest peer in float32, median of paired ratios: "
                f"{', '.join(fastest)}.",
            ]
    return lines


def of_the_plugin(names: Iterable[str]) -> list[str]:
    """What a reader must know of its columns, where no user's session would have it."""
    if not any(name.startswith("gptexport plugin") for name in names) or not is_needed():
        return []
    return [
        "",
        "gptexport plugin: OpenVINO's plugin offers Intel's CPUs alone, and this one is another's. Here ONNX Runtime "
        "was made to take it for one of Intel's (scripts/bench/intel.py), as no user's session does.",
    ]


def beside_fastest(seconds: Seconds[Shape], own: str) -> dict[Shape, tuple[str, float]]:
    """By shape: the fastest peer in float32, and the speed of a graph of ours relative to it."""
    found = {}
    for shape, by_name in seconds.items():
        peers = [name for name in by_name if not name.startswith("gptexport") and not name.endswith(NOT_FLOAT32)]
        if peers and own in by_name:
            fastest = min(peers, key=lambda name: statistics.median(by_name[name]))
            found[shape] = (fastest, speed(by_name[own], by_name[fastest]))
    return found


def chart(seconds: Seconds[Shape], size: str) -> str:
    """Every peer's speed relative to the baseline's, as bars."""
    speeds: dict[str, dict[str, Bar]] = {}
    for (B, T), by_name in seconds.items():
        base = by_name.get(BASELINE) or next(iter(by_name.values()))
        speeds[f"{B}×{T}"] = {name: _bar(each, base) for name, each in by_name.items()}
    return speed_chart(f"Logits of GPT-2 {size}, {os.cpu_count()} cores", BASELINE, speeds)


def _bar(seconds: Sequence[float], baseline: Sequence[float]) -> Bar:
    ratio = ratio_of(baseline, seconds)
    return Bar(ratio.median, ratio.low, ratio.high, statistics.median(seconds), noisy=ratio.noisy)


if __name__ == "__main__":
    main()
