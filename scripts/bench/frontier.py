"""Error against time: every runtime that computes GPT-2's logits on this machine's CPU, in every precision it has.

    make peers                                        # an environment of its own, .venv-peers
    .venv-peers/bin/python -m pip install llama-cpp-python gguf nncf
    .venv-peers/bin/python -m scripts.bench.frontier --rounds 5 --out docs/measurements/frontier

Each peer is a process of its own. In every round each runs once, in turn; ratios are taken within rounds, medians over
them. The error is relative RMS from eager float32, at 1x128; rounding in float32 counts as 1e-5. Random weights of
GPT-2's size: what 4 and 8 bits lose of trained weights is another figure. llama.cpp computes one row at a time, so that
it has no figure for batches.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gptexport.architectures.gpt2 import forward_flops
from gptexport.bench.machine import sgemm_rate
from gptexport.tune.chart import Dot, frontier_chart
from scripts.bench.files import prepare, vocab_size
from scripts.bench.models import SIZES
from scripts.bench.peers import PEERS, eager
from scripts.bench.tables import Shape, machine, options, shapes_of, speed, table, write
from scripts.bench.workers import Measure, Seconds, interleave, module, parse_or_serve, running, versions

BASELINE = "eager"
LEFT_OUT = ("gptexport portable", "gptexport plugin", "gptexport plugin bf16", "torch.compile")  # in cpu.md
NAMES = [name for name in PEERS if name not in LEFT_OUT]
TIME, ERROR = 0, 1  # what a case asks for
REFERENCE = "reference.npy"
PACKAGES = ("gptexport", "onnxruntime", "torch", "openvino", "nncf", "ctranslate2", "llama-cpp-python", "mobius-onnx")
NAN = float("nan")
ROUNDING = 1e-5  # of float32, in any order of sums: errors below are no smaller than one another


def main() -> None:
    parser = options(__doc__, writes="OUT.md, OUT.json and a picture OUT-BxT.svg for each shape", rounds=3)
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--shapes", type=shapes_of, default="1x1,1x128,4x256,1x1024")
    parser.add_argument("--only", help="some of: " + ", ".join(PEERS))
    parser.add_argument("--folder", type=Path, help="with every peer's files, as an earlier run wrote them")
    args = parse_or_serve(parser, timed)
    at = (1, min(128, SIZES[args.size].block_size))
    names = args.only.split(",") if args.only else NAMES
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if args.folder is None:
            prepare(folder, args.size, names)
        with running(module("scripts.bench.frontier"), names, folder, together=False) as workers:
            found, _ = interleave(workers.started, [(*at, ERROR)], 1)
            timed_, peaks = interleave(workers.started, [(*shape, TIME) for shape in args.shapes], args.rounds)
    errors = {name: each[0] for name, each in found[*at, ERROR].items()}
    seconds = {(B, T): by_name for (B, T, _), by_name in timed_.items()}
    rate = sgemm_rate(os.cpu_count() or 1)
    lines = [
        f"GPT-2 {args.size}, {machine()}, {args.rounds} interleaved rounds.",
        f"Median milliseconds; in brackets the speed relative to {BASELINE}, median of paired ratios. The error is "
        f"relative RMS from eager float32 at {at[0]}×{at[1]}, where rounding in float32 counts as {ROUNDING:.0e}. ★ "
        "marks the frontier of a shape: no other is both faster and more exact.",
        ", ".join(f"{name} {value}" for name, value in versions(PACKAGES).items()) + ".",
        "",
        *figures(seconds, errors, peaks),
        "",
        *ahead(seconds, errors),
        "",
        f"ONNX Runtime's own sgemm (1024×768×3072) reaches {rate / 1e9:.0f} GFLOP/s in float32.",
        *(f"\nNot measured: {name}: {reason}" for name, reason in workers.missing.items()),
    ]
    rows = [
        {"B": B, "T": T, "name": name, "error": errors[name], "seconds": each, "flop_per_s": flops / median(each)}
        for (B, T), by_name in seconds.items()
        for flops in [forward_flops(SIZES[args.size], B, T)]
        for name, each in by_name.items()
        if is_measured(each)
    ]
    data = {"versions": versions(PACKAGES), "missing": workers.missing, "peak_mib": peaks, "sgemm_flop_per_s": rate}
    write(args.out, lines, {**data, "timings": rows})
    for (B, T), by_name in seconds.items() if args.out else ():
        drawn = picture(f"Logits of GPT-2 {args.size} at {B}×{T}, {os.cpu_count()} cores", by_name, errors)
        args.out.with_name(f"{args.out.name}-{B}x{T}.svg").write_text(drawn)


def timed(name: str, folder: Path) -> Measure:
    """Seconds of one forward of a peer at (B,T), or its error there; NaN where it cannot."""
    run, V = PEERS[name](folder), vocab_size(folder)

    def measure(B: int, T: int, what: int) -> float:
        ids = np.random.default_rng(0).integers(0, V, (B, T))
        if what == ERROR:
            return max(relative_rms(as_array(run(ids)), reference(folder, ids)), ROUNDING)
        began = time.perf_counter()
        try:
            run(ids)
        except NotImplementedError:
            return NAN
        return time.perf_counter() - began

    return measure


def reference(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Eager's logits, which the first to ask for computes."""
    path = folder / REFERENCE
    if not path.exists():
        np.save(path, as_array(eager(folder)(ids)))
    return np.load(path)


def as_array(logits: Any) -> np.ndarray:
    """Logits as a peer returns them, in float32."""
    if isinstance(logits, np.ndarray):
        return logits
    if hasattr(logits, "float"):  # a tensor
        return np.asarray(logits.float().numpy())
    return np.asarray(logits[0])  # OpenVINO's results


def is_measured(seconds: Sequence[float]) -> bool:
    return not math.isnan(seconds[0])


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def on_frontier(by_name: Mapping[str, list[float]], errors: Mapping[str, float]) -> set[str]:
    """Those that no other is both faster and more exact than."""
    known = {name: speed(each, by_name[BASELINE]) for name, each in by_name.items() if is_measured(each)}
    return {
        name
        for name in known
        if not any(known[other] > known[name] and errors[other] < errors[name] for other in known)
    }


def figures(seconds: Seconds[Shape], errors: Mapping[str, float], peaks: Mapping[str, float]) -> list[str]:
    """A row for each peer, the most exact first."""
    best = {shape: on_frontier(by_name, errors) for shape, by_name in seconds.items()}
    rows = []
    for name in sorted(errors, key=errors.__getitem__):
        cells = []
        for shape, by_name in seconds.items():
            each = by_name[name]
            star = " ★" if name in best[shape] else ""
            ratio = speed(each, by_name[BASELINE])
            cells.append(f"{1e3 * median(each):.3g} ({ratio:.2f}×){star}" if is_measured(each) else "–")
        rows.append([name, f"{errors[name]:.1e}", *cells, f"{peaks[name] * 1.048576:.0f}"])
    return table(["", "error", *(f"{B}×{T}" for B, T in seconds), "peak MB"], rows)


def ahead(seconds: Seconds[Shape], errors: Mapping[str, float]) -> list[str]:
    """Peers' points that none of ours is both as fast and as exact as, and by how much: to a tenth in error."""
    lines = []
    for (B, T), by_name in seconds.items():
        for name, each in by_name.items():
            if name.startswith("gptexport") or not is_measured(each):
                continue
            ours = [other for other in by_name if other.startswith("gptexport") and errors[other] <= 1.1 * errors[name]]
            if not ours:
                lines.append(f"- {B}×{T}: none of ours is as exact as {name}.")
                continue
            fastest = max(ours, key=lambda other: speed(by_name[other], each))
            ratio = speed(by_name[fastest], each)
            if ratio < 1:
                lines.append(f"- {B}×{T}: {name} is {1 / ratio:.2f} × as fast as {fastest}, our fastest so exact.")
    head = "Where a peer is ahead of all of ours that are as exact as it, to a tenth of its error:"
    return [head, "", *lines] if lines else ["At no shape is a peer ahead of all of ours that are as exact as it."]


def picture(title: str, by_name: Mapping[str, list[float]], errors: Mapping[str, float]) -> str:
    best = on_frontier(by_name, errors)
    dots = [
        Dot(name, errors[name], speed(each, by_name[BASELINE]), name in best, name.startswith("gptexport"))
        for name, each in by_name.items()
        if is_measured(each)
    ]
    return frontier_chart(
        title,
        dots,
        note=f"higher is faster than {BASELINE} in float32, left is more exact; ringed dots are ours",
        error="relative RMS error",
    )


if __name__ == "__main__":
    main()
