"""How fast is it, beside what: interleaved rounds and paired ratios, because a machine's speed drifts.

In every round each candidate runs once, one after the other; a ratio is taken within a round, the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptexport.config import GPTConfig

Ids = npt.NDArray[np.int64]
Shape = tuple[int, int]
Candidate = Callable[[Ids], object]  # one forward of ids (B,T) to logits

WARM_UP = 1  # rounds that are not counted
PAUSE = 0.1  # seconds before each run: the threads of the one before go on spinning for a while, and take its cores


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One candidate at one shape. Times in seconds."""

    name: str
    shape: Shape
    median: float
    fastest: float
    speed_ratio: float  # the baseline's time divided by this one's, median over rounds; above 1 is faster
    tokens_per_second: float
    gemm_fraction: float | None  # of the machine's measured sgemm rate; None where the model's FLOPs are not known


def measure(
    candidates: Mapping[str, Candidate],
    shapes: Sequence[Shape],
    *,
    vocab_size: int,
    baseline: str,
    rounds: int,
    config: GPTConfig | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> list[Timing]:
    """Time every candidate at every shape, in turn within each round.

    Args:
        baseline: the candidate that the others' speed is given relative to.
        rounds: counted rounds; one more comes first, to warm up.
        config: of a GPT-2, whose FLOPs are known.
    """
    peak = sgemm_rate()
    timings = []
    for B, T in shapes:
        progress(f"B,T = {B},{T}: {rounds} rounds of {', '.join(candidates)}")
        ids = np.random.default_rng(0).integers(0, vocab_size, (B, T))
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for counted in range(-WARM_UP, rounds):
            for name, run in candidates.items():
                time.sleep(PAUSE)
                began = time.perf_counter()
                run(ids)
                spent = time.perf_counter() - began
                if counted >= 0:
                    seconds[name].append(spent)
        flops = forward_flops(config, B, T) if config is not None else None
        for name, spent_each in seconds.items():
            median = statistics.median(spent_each)
            ratios = [base / own for base, own in zip(seconds[baseline], spent_each, strict=True)]
            timings.append(
                Timing(
                    name=name,
                    shape=(B, T),
                    median=median,
                    fastest=min(spent_each),
                    speed_ratio=statistics.median(ratios),
                    tokens_per_second=B * T / median,
                    gemm_fraction=flops / median / peak if flops is not None else None,
                )
            )
    return timings


def forward_flops(config: GPTConfig, B: int, T: int) -> float:
    """Multiplications and additions of one forward to all logits: the matmuls, and the causal half of attention."""
    C, V = config.n_embd, config.vocab_size
    per_token = config.n_layer * (4 * C * C + 2 * C * config.mlp_width) + C * V
    attention = config.n_layer * 2 * C * T * (T + 1) / 2  # scores and their product with v
    return 2.0 * B * (T * per_token + attention)


def sgemm_rate(size: int = 2048, tries: int = 5) -> float:
    """FLOP/s of numpy's float32 matrix product on all cores, the fastest of some tries: a yardstick, not a limit."""
    a = np.random.default_rng(0).random((size, size), dtype=np.float32)
    out = np.empty_like(a)
    fastest = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        np.matmul(a, a, out=out)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * size**3 / fastest
