"""What the graphs of a bundle save: `last` and `score` beside all logits, in time and in memory; packed weights or not.

    python -m scripts.bench.heads gpt2/ --out docs/measurements/heads

Times: medians of interleaved rounds in one process. Memory: a process of its own for each figure, which loads the
bundle and makes one call; its peak counts pages of the mapped weights while they are touched, so the two are told apart
as they are at the end: anonymous memory, which is the process's own, and pages of files, which the system may drop.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from gptexport.bench.machine import memory_of, sgemm_rate
from gptexport.bench.measure import Side, in_this_process, measure
from gptexport_runtime import Session, load
from scripts.bench.tables import options, table, write

DEFAULT_WIDTH = 768


def main() -> None:
    parser = options(__doc__, writes="OUT.md", rounds=5)
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    weights = (args.bundle / "weights.data").stat().st_size
    lines = [f"{weights / 1e6:.0f} MB of weights, {os.cpu_count()} cores, {args.rounds} interleaved rounds.", ""]
    with load(args.bundle, "cpu") as session, load(args.bundle, "cpu", prepack=False) as lean:
        lines += [*times(session, args.rounds), "", *packing(session, lean, args.rounds), ""]
        longest = session.config.block_size or 1024
    write(args.out, [*lines, *memory(args.bundle, weights, longest)])


def times(session: Session, rounds: int) -> list[str]:
    V, longest = session.config.vocab_size, session.config.block_size or 1024
    width = session.config.n_embd or DEFAULT_WIDTH
    head_rate = sgemm_rate(session.threads, size=(1024, width, V))
    rows = []
    for B in (1, 8):
        out = np.empty((B, longest, V), np.float32)
        calls: dict[str, Side] = {
            "logits": in_this_process(partial(session.logits, out=out), V),
            "last": in_this_process(session.last_logits, V),
            "score": in_this_process(session.score, V),
        }
        shape = (B, longest)
        found = measure(calls, [shape], baseline="logits", rounds=rounds if B == 1 else min(rounds, 3))
        logits, last, score = found
        saved = (logits.warm - last.warm) / (2.0 * B * longest * width * V / head_rate)
        medians = [f"{1e3 * timing.warm:,.0f} ms" for timing in found]
        rows.append([f"{B}×{longest}", *medians, f"{score.ratio.median:.2f} × as fast", f"{100 * saved:.0f} %"])
    header = ["B×T", "logits", "last", "score", "score beside logits", "of the head's time, last saves"]
    return table(header, rows)


def packing(session: Session, lean: Session, rounds: int) -> list[str]:
    rows = []
    V, longest = session.config.vocab_size, session.config.block_size or 1024
    for shape in (shape for shape in ((1, 1), (1, 16), (1, 128), (4, 256)) if shape[1] <= longest):
        out = np.empty((*shape, V), np.float32)
        calls: dict[str, Side] = {
            "packed": in_this_process(partial(session.logits, out=out), V),
            "mapped": in_this_process(partial(lean.logits, out=out), V),
        }
        packed, mapped = measure(calls, [shape], baseline="packed", rounds=2 * rounds)
        medians = [f"{1e3 * timing.warm:,.1f} ms" for timing in (packed, mapped)]
        rows.append([f"{shape[0]}×{shape[1]}", *medians, f"{mapped.ratio.median:.2f} ×"])
    return table(["B×T", "packed", "`prepack=False`", "its speed"], rows)


def memory(bundle: Path, weights: int, longest: int) -> list[str]:
    everything = ("logits", "last_logits", "score")
    rows = []
    short = (1, min(128, longest))
    for calls, (B, T) in ((("logits",), short), (everything, short), (("score",), (8, longest))):
        for prepack in (True, False):
            found = memory_of(bundle, "cpu", os.cpu_count() or 1, (B, T), calls=calls, prepack=prepack)
            if found is None:
                return ["Memory is not measured here: it is read from Linux's /proc."]
            what = f"{', '.join(calls)} {B}×{T}" + ("" if prepack else ", `prepack=False`")
            megabytes = [f"{count / 1e6:,.0f} MB" for count in (found.peak, found.own, found.files)]
            rows.append([what, megabytes[0], f"{found.peak / weights:.2f} ×", *megabytes[1:]])
    return table(["a process that calls", "peak", "of the weights", "its own", "of files"], rows)


if __name__ == "__main__":
    main()
