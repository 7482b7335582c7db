"""What the graphs of a bundle save: `last` and `score` beside all logits, in time and in memory; packed weights or not.

    python scripts/bench_heads.py gpt2/ --out docs/measurements/heads

Times: medians of interleaved rounds in one process. Memory: a process of its own for each figure, which loads the
bundle and makes one call; its peak counts pages of the mapped weights while they are touched, so the two are told apart
as they are at the end: anonymous memory, which is the process's own, and pages of files, which the system may drop.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np

from gptexport.bench import Candidate, measure, memory_of, sgemm_rate
from gptexport_runtime import Session, load

DEFAULT_WIDTH = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write OUT.md")
    args = parser.parse_args()
    weights = (args.bundle / "weights.data").stat().st_size
    lines = [f"{weights / 1e6:.0f} MB of weights, {os.cpu_count()} cores, {args.rounds} interleaved rounds.", ""]
    with load(args.bundle, "cpu") as session, load(args.bundle, "cpu", prepack=False) as lean:
        lines += times(session, args.rounds)
        lines += packing(session, lean, args.rounds)
    lines += memory(args.bundle, weights)
    print("\n".join(lines))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def times(session: Session, rounds: int) -> list[str]:
    V, longest = session.config.vocab_size, session.config.block_size or 1024
    width = session.config.n_embd or DEFAULT_WIDTH
    head_rate = sgemm_rate(session.threads, size=(1024, width, V))
    lines = [
        "| B×T | logits | last | score | score beside logits | of the head's time, last saves |",
        "|---" * 6 + "|",
    ]
    for B in (1, 8):
        out = np.empty((B, longest, V), np.float32)
        calls: dict[str, Candidate] = {
            "logits": partial(session.logits, out=out),
            "last": session.last_logits,
            "score": session.score,
        }
        shape = (B, longest)
        found = measure(calls, [shape], vocab_size=V, baseline="logits", rounds=rounds if B == 1 else min(rounds, 3))
        logits, last, score = found
        saved = (logits.median - last.median) / (2.0 * B * longest * width * V / head_rate)
        row = [f"{B}×{longest}", *(f"{1e3 * timing.median:,.0f} ms" for timing in found)]
        lines.append(f"| {' | '.join(row)} | {score.speed_ratio:.2f} × as fast | {100 * saved:.0f} % |")
    return [*lines, ""]


def packing(session: Session, lean: Session, rounds: int) -> list[str]:
    lines = ["| B×T | packed | `prepack=False` | its speed |", "|---" * 4 + "|"]
    for shape in ((1, 1), (1, 16), (1, 128), (4, 256)):
        V = session.config.vocab_size
        out = np.empty((*shape, V), np.float32)
        calls: dict[str, Candidate] = {
            "packed": partial(session.logits, out=out),
            "mapped": partial(lean.logits, out=out),
        }
        packed, mapped = measure(calls, [shape], vocab_size=V, baseline="packed", rounds=2 * rounds)
        medians = f"{1e3 * packed.median:,.1f} ms | {1e3 * mapped.median:,.1f} ms"
        lines.append(f"| {shape[0]}×{shape[1]} | {medians} | {mapped.speed_ratio:.2f} × |")
    return [*lines, ""]


def memory(bundle: Path, weights: int) -> list[str]:
    lines = ["| a process that calls | peak | of the weights | its own | of files |", "|---" * 5 + "|"]
    everything = ("logits", "last_logits", "score")
    for calls, shape in ((("logits",), (1, 128)), (everything, (1, 128)), (("score",), (8, 1024))):
        for prepack in (True, False):
            found = memory_of(bundle, "cpu", os.cpu_count() or 1, shape, calls=calls, prepack=prepack)
            if found is None:
                return ["Memory is not told here: it is read from Linux's /proc."]
            told = f"{', '.join(calls)} {shape[0]}×{shape[1]}" + ("" if prepack else ", `prepack=False`")
            figures = f"{found.peak / 1e6:,.0f} MB | {found.peak / weights:.2f} × "
            figures += f"| {found.own / 1e6:,.0f} MB | {found.files / 1e6:,.0f} MB"
            lines.append(f"| {told} | {figures} |")
    return lines


if __name__ == "__main__":
    main()
