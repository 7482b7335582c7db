"""Which (B,T) parity looks at."""

from __future__ import annotations

from collections.abc import Sequence

from gptexport.artifacts import Artifact
from gptexport_runtime import InputError

Shape = tuple[int, int]  # (B,T)

MIN_POSITIONS = 32
FEW_POSITIONS = 16  # fewer show neither a mask nor a position


class ShapeError(InputError):
    """A shape that the model or the artifact does not take."""


def default_grid(block_size: int) -> list[Shape]:
    """The corners and some odd places: (1,1), (1,2), B > 1, odd lengths, the whole context."""
    wanted = [(1, 1), (1, 2), (8, 5), (3, 17), (2, block_size // 2 | 1), (1, block_size)]
    return list(dict.fromkeys((B, min(T, block_size)) for B, T in wanted))


def quick_grid(block_size: int) -> list[Shape]:
    """A first answer in a fraction of the time: one token, and two rows of a few."""
    return list(dict.fromkeys([(1, 1), (2, min(33, block_size))]))


def choose_grid(artifact: Artifact, block_size: int, shapes: Sequence[Shape] | None, *, quick: bool) -> list[Shape]:
    """The shapes that were asked for, or those of the default that the artifact takes.

    Raises:
        ShapeError: one that was asked for is longer than block_size, or outside of what the artifact takes.
    """
    if shapes is None:
        return artifact.fit((quick_grid if quick else default_grid)(block_size))
    too_long = [f"{B}x{T}" for B, T in shapes if block_size < T]
    if too_long:
        raise ShapeError(f"{', '.join(too_long)}: T is beyond block_size {block_size}.")
    outside = [f"{B}x{T}" for B, T in shapes if not artifact.accepts(B, T)]
    if outside:
        raise ShapeError(f"{', '.join(outside)}: this {artifact.kind} takes {artifact.limits}.")
    return list(shapes)


def draws_of(shape: Shape) -> int:
    """How many batches to draw at a shape: the noise of one position alone is a matter of luck."""
    B, T = shape
    return -(-MIN_POSITIONS // (B * T))


def choose_shape(shapes: Sequence[Shape]) -> Shape:
    """The cheapest shape that has enough positions to show anything; the largest where none has."""
    enough = [shape for shape in shapes if shape[0] * shape[1] >= FEW_POSITIONS and shape[1] > 2]
    return min(enough, key=_size) if enough else max(shapes, key=_size)


def _size(shape: Shape) -> int:
    return shape[0] * shape[1]
