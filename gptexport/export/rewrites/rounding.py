"""Four or eight bits a weight: a grid for each block of inputs, and errors that later weights make up for.

GPTQ (arXiv 2210.17323): a weight that is rounded errs, and the weights behind it, which are not rounded yet, are moved
so that the output errs least on inputs that were seen. Each block has a scale and a zero point of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCKS = (128, 64, 32)  # how many inputs may share a scale and a zero point
FLAT = ".flat"  # behind a weight's name: without half bytes
DAMPINGS = (0.01, 0.1, 1.0)  # of the inputs' mean square: GPTQ's own, and more where its matrix has no inverse yet
SHRINKS = (0.75, 0.85, 0.92, 1.0)  # of a block's range: clipping its ends may fit the rest better
FLOAT16_FITS = (1e-4, 1e4)  # a weight's largest number, for which scales in float16 lose less than half a percent


@dataclass(frozen=True)
class Rounded:
    """A weight (N,K) in codes: (code - zero) * scale. K is filled up to whole blocks."""

    bits: int  # of a code; where there are 4, a byte holds two, the first in its lower bits
    codes: torch.Tensor  # (N, blocks, block * bits / 8) uint8
    scales: torch.Tensor  # (N, blocks) float16; float32 where that is too narrow
    zeros: torch.Tensor  # (N, blocks * bits / 8) uint8, rounded up

    @property
    def block(self) -> int:
        """How many inputs share a scale and a zero point."""
        return self.codes.shape[2] * 8 // self.bits

    @property
    def flat_zeros(self) -> torch.Tensor:
        """(N * blocks * bits / 8) uint8: without the half byte that a row of an odd number of them ends in."""
        if self.bits == 8:
            return self.zeros.flatten()
        return _pack(_unpack(self.zeros, self.bits)[:, : self.scales.shape[1]].reshape(1, -1), self.bits).flatten()

    def widened(self) -> torch.Tensor:
        """(N,K) float32: the weight that this is."""
        zeros = _unpack(self.zeros, self.bits)[:, : self.scales.shape[1], None]
        steps = _unpack(self.codes, self.bits).float().sub_(zeros)
        return steps.mul_(self.scales[..., None]).flatten(1)


def block_of(columns: int, longest: int) -> int:
    """The longest block that divides a weight's inputs, up to `longest`; the shortest where none does."""
    return next((block for block in BLOCKS if block <= longest and columns % block == 0), BLOCKS[-1])


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small operations, which threads that wait for one another only slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@one_thread()
def round_weight(
    weight: torch.Tensor, inputs: torch.Tensor | None = None, *, bits: int = 4, longest: int = BLOCKS[-1]
) -> Rounded:
    """Round a linear's weight (N,K).

    Args:
        bits: 4 or 8.
        inputs: (M,K) that it was seen to read; None: each weight by itself.
        longest: block, of BLOCKS.
    """
    (N, K), top = weight.shape, 2**bits - 1
    block = block_of(K, longest)
    work = F.pad(weight.float().t(), (0, 0, 0, -K % block)).contiguous()  # (K,N): a step of GPTQ is a row
    blocks = len(work) // block
    onto_later = _onto_later(inputs, len(work)) if inputs is not None else None
    low, high = FLOAT16_FITS
    kind = torch.float16 if low <= float(weight.abs().max()) <= high else torch.float32
    codes, scales = torch.empty(work.shape, dtype=torch.uint8), torch.empty((blocks, N), dtype=kind)
    zeros = torch.empty((blocks, N), dtype=torch.uint8)
    for number in range(blocks):
        span = slice(number * block, (number + 1) * block)
        scale, zero = best_grid(work[span], top, kind)
        scales[number], zeros[number] = scale, zero
        if onto_later is None:
            codes[span] = _code(work[span], scale, zero, top)
            continue
        errors = torch.empty_like(work[span])
        for step, row in enumerate(range(span.start, span.stop)):
            codes[row] = code = _code(work[row], scale, zero, top)
            errors[step] = (work[row] - (code - zero) * scale) / onto_later[row, row]
            work[row + 1 : span.stop] -= onto_later[row, row + 1 : span.stop, None] * errors[step]
        work[span.stop :] -= onto_later[span, span.stop :].t() @ errors
    packed = _pack(codes.t(), bits).reshape(N, blocks, block * bits // 8)
    return Rounded(bits, packed, scales.t().contiguous(), _pack(zeros.t(), bits))


def best_grid(block: torch.Tensor, top: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and zero point with the least squared error, of some, for each column of (block,N).

    Args:
        top: the largest code.

    Returns: scales (N) float32 that `kind` holds exactly, none of them 0; zero points (N) float32, whole, 0 to `top`.
    """
    low, high = block.amin(0).clamp(max=0), block.amax(0).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    chosen, chosen_zero = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        scale = _held((high - low) * (shrink / top), kind)
        zero = (-low / scale).round().clamp(0, top)
        steps = _code(block, scale, zero, top) - zero
        fitted = (steps * block).sum(0) / (steps * steps).sum(0)  # least squares, with these codes
        scale = _held(torch.where(fitted > 0, fitted, scale), kind)
        error = ((_code(block, scale, zero, top) - zero) * scale - block).square().sum(0)
        better = error < best
        best = torch.where(better, error, best)
        chosen, chosen_zero = torch.where(better, scale, chosen), torch.where(better, zero, chosen_zero)
    return chosen, chosen_zero


def _code(numbers: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    return ((numbers / scale).round_() + zero).clamp_(0, top)


def _held(scale: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """As it will be stored; 1 for a block of zeros."""
    stored = scale.to(kind).float()
    return torch.where(stored > 0, stored, 1.0)


def _onto_later(inputs: torch.Tensor, size: int) -> torch.Tensor | None:
    """(K,K), upper triangular: what an error at a row asks of the rows behind it, times the diagonal.

    The Cholesky factor of the inverse of the inputs' second moments; None where these are not finite.
    """
    moments = F.pad(inputs.float().t() @ inputs.float(), 2 * (0, size - inputs.shape[1]))
    mean = max(float(moments.diagonal().mean()), torch.finfo(torch.float32).tiny)
    for damping in DAMPINGS:
        factor, failed = torch.linalg.cholesky_ex(moments + damping * mean * torch.eye(size))
        if failed:
            continue
        found, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        upper: torch.Tensor = found
        if not failed and upper.isfinite().all():
            return upper
    return None


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(N,n) codes as bytes: of 4 bits two in each, the first below."""
    if bits == 8:
        return codes.contiguous()
    even = F.pad(codes, (0, codes.shape[1] % 2))
    return (even[:, ::2] | even[:, 1::2] << 4).contiguous()


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """(...,n) bytes as codes."""
    return packed if bits == 8 else torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
