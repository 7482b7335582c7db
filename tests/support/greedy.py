"""Is what was generated greedily what the model itself would say, asked without a cache?

The whole text goes through eager PyTorch once: if every new token is the argmax after those before it, then so it is
step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

Ids = np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Of new tokens: how many there were, how many were another than eager's, and how many of those were ties."""

    tokens: int
    wrong: int
    ties: int


def fixed_prompts(count: int, *, block_size: int, vocab_size: int, text: Ids | None = None) -> list[Ids]:
    """Prompts of random lengths 1 ... block_size-1: pieces of `text`, or random ids."""
    random = np.random.default_rng(200)
    lengths = random.integers(1, block_size, count)
    if text is None:
        return [random.integers(0, vocab_size, length) for length in lengths]
    starts = random.integers(0, len(text) - block_size, count)
    return [np.asarray(text[start : start + length], np.int64) for start, length in zip(starts, lengths, strict=True)]


@torch.inference_mode()
def agreement(model: nn.Module, prompts: Sequence[Ids], generated: Sequence[Ids], *, tie: float = 1e-4) -> Agreement:
    """A tie: eager's logits of its token and of ours differ by less than `tie`. What follows one is not compared."""
    tokens = wrong = ties = 0
    for prompt, new in zip(prompts, generated, strict=True):
        if not len(new):
            continue
        text = torch.from_numpy(np.concatenate([prompt, new]))[None]
        logits = model(text[:, :-1])[0, len(prompt) - 1 :]
        mismatches = np.flatnonzero(logits.argmax(dim=-1).numpy() != new)
        tokens += len(new) if not len(mismatches) else int(mismatches[0]) + 1
        if len(mismatches):
            at = int(mismatches[0])
            near = float(logits[at].max() - logits[at, int(new[at])]) < tie
            ties += near
            wrong += not near
    return Agreement(tokens, wrong, ties)
