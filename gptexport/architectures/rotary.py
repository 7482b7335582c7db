"""Rotary position embeddings: frequencies, the scalings that stretch them over longer texts, tables, and the rotation.

Queries and keys are turned in pairs (j, j + D/2) of their D numbers, each pair by its own frequency times the position.
Everything is computed in float32, as training computes it: a table in double precision would be another model's.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Every position divided by `factor` (position interpolation, arXiv:2306.15595)."""

    factor: float

    gain = 1.0

    def frequencies(self, periods: torch.Tensor, base: float) -> torch.Tensor:
        return 1.0 / periods / self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3:
    """Llama 3.1's: slow turns are slowed by `factor`, fast ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_block_size: int  # that of pretraining, before the text was stretched

    gain = 1.0

    def frequencies(self, periods: torch.Tensor, base: float) -> torch.Tensor:
        plain = 1.0 / periods
        turns = self.original_block_size / (2 * math.pi / plain)  # over the original text
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - kept) * plain / self.factor + kept * plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """YaRN (arXiv:2309.00071): as Llama3, but interpolated over the index of the pair, and scores sharpened."""

    factor: float
    original_block_size: int
    beta_fast: float = 32.0  # turns in the original text from which on a pair is kept
    beta_slow: float = 1.0  # turns up to which a pair is slowed by the whole factor
    gain: float  # of cos and sin; the paper's is 0.1 ln(factor) + 1
    truncate: bool = True  # the two bounds rounded outwards to whole pairs

    def frequencies(self, periods: torch.Tensor, base: float) -> torch.Tensor:
        pairs = len(periods)
        low, high = (self._pair(turns, 2 * pairs, base) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        width = high - low if high != low else 0.001
        kept = 1 - ((torch.arange(pairs, dtype=torch.float32) - low) / width).clamp(0, 1)
        return 1.0 / (self.factor * periods) * (1 - kept) + 1.0 / periods * kept

    def _pair(self, turns: float, size: int, base: float) -> float:
        """The pair, as a fraction, that makes so many turns over the original text."""
        return size * math.log(self.original_block_size / (turns * 2 * math.pi)) / (2 * math.log(base))


LONGEST = 1 << 22  # positions: more is a damaged file, whose tables would take gigabytes
Scaling = Linear | Llama3 | Yarn
SCALINGS: Mapping[str, type[Scaling]] = {"linear": Linear, "llama3": Llama3, "yarn": Yarn}


def frequencies_of(size: int, base: float, scaling: Scaling | None = None) -> torch.Tensor:
    """(size/2) float32: radians a position, one for each pair of a head's `size` numbers that turn."""
    periods = base ** (torch.arange(0, size, 2).float() / size)  # positions a radian
    return 1.0 / periods if scaling is None else scaling.frequencies(periods, base)


def rotary_tables(
    block_size: int, size: int, base: float, scaling: Scaling | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position's angles, each (block_size, size/2) float32."""
    angles = torch.outer(torch.arange(block_size).float(), frequencies_of(size, base, scaling))
    gain = 1.0 if scaling is None else scaling.gain
    return angles.cos() * gain, angles.sin() * gain


def check_table(block_size: int, base: float, scaling: Scaling | None = None) -> None:
    """Raise ValueError where tables for so many positions are not to be made, or of such numbers cannot be."""
    if block_size > LONGEST:
        raise ValueError(f"block_size is {block_size}; expected at most {LONGEST}, for which rotary tables are made")
    try:
        frequencies_of(2, base, scaling)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"rope_base {base} with {scaling} gives no frequencies ({error})") from error


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn x (B,H,T,D) by the angles of cos and sin (1,1,T,D/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


def interleaved_to_halves(weight: torch.Tensor, n_head: int) -> torch.Tensor:
    """A query or key projection (n_head·D, C) or its bias, trained to turn the pairs (2j, 2j+1), for `rotate`.

    Scores are sums over a head's numbers, so their order is free: both projections give the even ones first.
    """
    rows = weight.view(n_head, -1, 2, *weight.shape[1:])  # (n_head, D/2, 2, C)
    return rows.transpose(1, 2).reshape(weight.shape)


def scaling_of(fields: Mapping[str, Any]) -> Scaling:
    """A scaling from its fields and its `type`, as `scaling_to_dict` writes them."""
    values = dict(fields)
    return SCALINGS[values.pop("type")](**values)


def scaling_to_dict(scaling: Scaling | None) -> dict[str, Any] | None:
    """Plain fields, and the `type` that says whose they are."""
    if scaling is None:
        return None
    (name,) = (name for name, kind in SCALINGS.items() if isinstance(scaling, kind))
    return {"type": name, **asdict(scaling)}
