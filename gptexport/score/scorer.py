"""What scores a shard: a plain callable that can be pickled, for this process or for one on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport.score.windows import Shard, cut_batches
from gptexport_runtime import Session, load
from gptexport_runtime.errors import ExecutionError

Logprobs = NDArray[np.float32]

MOST_TOKENS = 1 << 16  # of a batch that is tried
GAIN = 1.02  # a larger batch must be so many times as fast, for it takes more memory
NEAR, ROUNDS = 1.2, 3  # what is at most so many times slower than the fastest is timed so many times more
PATIENCE = 16  # batches so many times as large as the best are tried before it is the best
SPEND, TRIES = 0.3, 5  # seconds and calls at each size
MOST_SECONDS = 20.0  # of all sizes together


@dataclass
class Scorer:
    """Log-probs of shards by one artifact after another. The sessions are opened when first needed, not pickled."""

    artifacts: Sequence[Path]
    device: str
    threads: int | None
    batch_tokens: int  # rows × longest of what is fed at once
    sessions: list[Session] = field(default_factory=list, repr=False)

    def __call__(self, shard: Shard) -> list[list[Logprobs]]:
        """Of each artifact, of each window, the log-probs float32 (scored) of the tokens that it scores.

        Raises:
            GPTExportError: an artifact cannot be opened, or fails.
        """
        if not self.sessions:
            self.sessions = [load(path, device=self.device, threads=self.threads) for path in self.artifacts]
        return [_score(session, shard, self.batch_tokens) for session in self.sessions]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sessions": []}

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        self.sessions = []


def _score(session: Session, shard: Shard, batch_tokens: int) -> list[Logprobs]:
    found = [np.zeros(0, np.float32)] * len(shard.windows)
    for rows in cut_batches(shard.windows, batch_tokens):
        windows = [shard.windows[i] for i in rows]
        logprobs = session.score([window.ids for window in windows]).logprobs
        for i, window, row in zip(rows, windows, logprobs, strict=True):
            found[i] = row[len(window.ids) - 1 - window.scored : len(window.ids) - 1].copy()
    return found


def measure_batch(session: Session, block_size: int, progress: Callable[[str], None]) -> int:
    """How many tokens to feed at once: of batches 1, 2, 4 ... of block_size tokens, the fastest for each token.

    Raises:
        ExecutionError: not even one row can be scored.
    """
    draw, began = np.random.default_rng(0), time.perf_counter()
    ids: dict[int, NDArray[np.int64]] = {}
    rates: dict[int, float] = {}
    B = 1
    while not rates or (B * block_size <= MOST_TOKENS and PATIENCE * max(rates, key=lambda B: rates[B]) > B):
        ids[B] = draw.integers(0, session.config.vocab_size, (B, block_size))
        try:
            rates[B] = ids[B].size / _fastest(session, ids[B])
        except (ExecutionError, MemoryError):
            if not rates:
                raise
            break
        if time.perf_counter() - began > MOST_SECONDS:
            break
        B *= 2
    near = [B for B, rate in rates.items() if NEAR * rate > max(rates.values())]
    for _ in range(ROUNDS if time.perf_counter() - began < MOST_SECONDS else 0):
        for B in near:  # in turn, because a machine's speed drifts
            rates[B] = max(rates[B], ids[B].size / _fastest(session, ids[B]))
    best = next(B for B in near if GAIN * rates[B] >= max(rates.values()))
    progress(f"batches of {best}x{block_size}: {rates[best]:,.0f} tokens a second")
    return best * block_size


def _fastest(session: Session, ids: NDArray[np.int64]) -> float:
    """Seconds of the fastest call of some, the first of which does not count."""
    session.score(ids)
    seconds: list[float] = []
    while len(seconds) < TRIES and sum(seconds) < SPEND:
        began = time.perf_counter()
        session.score(ids)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
