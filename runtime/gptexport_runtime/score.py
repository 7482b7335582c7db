"""Log-probabilities of the tokens that came, and what follows from them. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """How likely a model finds each row of ids.

    logprobs: float32 (B,T-1), the natural log of p(ids[b,t+1] | ids[b,:t+1]); NaN past a row's end.
    """

    logprobs: NDArray[np.float32]

    @property
    def nll(self) -> NDArray[np.float64]:
        """(B): the sum of each row's negative log-probs, in nats; 0 for a row of one token."""
        return np.asarray(-np.nansum(self.logprobs, axis=1, dtype=np.float64))

    @property
    def counts(self) -> NDArray[np.int64]:
        """(B): how many tokens of each row were scored, all but the first."""
        return np.asarray(np.count_nonzero(~np.isnan(self.logprobs), axis=1))

    @property
    def perplexity(self) -> NDArray[np.float64]:
        """(B): exp of the mean negative log-prob of each row; NaN for a row of one token."""
        counts = self.counts
        mean = np.divide(self.nll, counts, out=np.full(len(counts), np.nan), where=counts > 0)
        return np.asarray(np.exp(mean))
