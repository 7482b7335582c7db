"""What the graphs of a bundle save: `last` and `score` beside all logits, in time and in memory; packed weights or not.

    python scripts/bench_heads.py gpt2/ --out docs/measurements/heads

Times: medians of interleaved rounds in one process. Memory: a process of its own for each figure, which loads the
bundle and makes one call; its peak counts pages of the mapped weights while they are touched, so the two are told apart
as they are at the end: anonymous memory, which is the process's own, and pages of files, which the system may drop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gptexport_runtime import Session, load
from workers import PAUSE

from gptexport.bench import sgemm_rate

CHILD = """
import sys, numpy as np
from gptexport_runtime import load
path, prepack, calls, B, T = sys.argv[1], sys.argv[2] == "1", sys.argv[3].split(","), *map(int, sys.argv[4:])
with load(path, "cpu", prepack=prepack) as session:
    for call in calls:
        getattr(session, call)(np.zeros((B, T), np.int64))
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile")))
"""


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


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            call()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def times(session: Session, rounds: int) -> list[str]:
    V, longest = session.config.vocab_size, session.config.block_size or 1024
    lines = [
        "| B×T | logits | last | score | score relative to logits | of the head's time, last saves |",
        "|---" * 6 + "|",
    ]
    for B in (1, 8):
        ids = np.random.default_rng(0).integers(0, V, (B, longest))
        out = np.empty((B, longest, V), np.float32)
        seconds = interleave(
            {
                "logits": lambda ids=ids, out=out: session.logits(ids, out=out),
                "last": lambda ids=ids: session.last_logits(ids),
                "score": lambda ids=ids: session.score(ids),
            },
            rounds if B == 1 else min(rounds, 3),
        )
        width = session.config.n_embd or 768
        head = 2.0 * B * longest * width * V / sgemm_rate(session.threads, size=(1024, width, V))
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        saved = statistics.median(a - b for a, b in zip(seconds["logits"], seconds["last"], strict=True)) / head
        row = [f"{B}×{longest}", *(f"{1e3 * median:,.0f} ms" for median in medians.values())]
        lines.append(
            f"| {' | '.join(row)} | {ratio(seconds['logits'], seconds['score']):.2f} × as fast | {100 * saved:.0f} % |"
        )
    return [*lines, ""]


def packing(session: Session, lean: Session, rounds: int) -> list[str]:
    lines = ["| B×T | packed | `prepack=False` | its speed |", "|---" * 4 + "|"]
    for B, T in ((1, 1), (1, 16), (1, 128), (4, 256)):
        ids = np.random.default_rng(0).integers(0, session.config.vocab_size, (B, T))
        out = np.empty((B, T, session.config.vocab_size), np.float32)
        seconds = interleave(
            {
                "packed": lambda ids=ids, out=out: session.logits(ids, out=out),
                "mapped": lambda ids=ids, out=out: lean.logits(ids, out=out),
            },
            2 * rounds,
        )
        packed, mapped = (1e3 * statistics.median(each) for each in seconds.values())
        speed = ratio(seconds["packed"], seconds["mapped"])
        lines.append(f"| {B}×{T} | {packed:,.1f} ms | {mapped:,.1f} ms | {speed:.2f} × |")
    return [*lines, ""]


def memory(bundle: Path, weights: int) -> list[str]:
    lines = ["| a process that calls | peak | of the weights | its own | of files |", "|---" * 5 + "|"]
    cases = [
        ("logits", (1, 128), True),
        ("logits", (1, 128), False),
        ("logits,last_logits,score", (1, 128), True),
        ("logits,last_logits,score", (1, 128), False),
        ("score", (8, 1024), True),
        ("score", (8, 1024), False),
    ]
    for calls, (B, T), prepack in cases:
        command = [sys.executable, "-c", CHILD, str(bundle), str(int(prepack)), calls, str(B), str(T)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, own, files = map(int, done.stdout.split())
        told = f"{calls.replace(',', ', ')} {B}×{T}" + ("" if prepack else ", `prepack=False`")
        figures = f"{peak / 1e6:,.0f} MB | {peak / weights:.2f} × | {own / 1e6:,.0f} MB | {files / 1e6:,.0f} MB"
        lines.append(f"| {told} | {figures} |")
    return lines


if __name__ == "__main__":
    main()
