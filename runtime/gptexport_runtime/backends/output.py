"""How an output lies in memory: its rows may be longer than what counts of them, and its floats shorter than float32.

`gptexport onnx --pad-vocab --native-logits` writes such graphs, of the logits alone (docs/targets.md). Callers see
(B,T,V), and on the host float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FloatType:
    """A float, as numpy, ONNX Runtime and DLPack know it."""

    name: str
    graph: str  # as ONNX Runtime writes the type of a graph's output
    stored: type[np.generic]  # the numpy type that holds it
    element: Any  # what ONNX Runtime binds it as: a numpy type, or a number of onnx.TensorProto
    dlpack: tuple[int, int]  # code and bits of a DLDataType

    @property
    def bytes(self) -> int:
        return np.dtype(self.stored).itemsize

    def widen(self, values: NDArray[Any]) -> Floats:
        """The same numbers in float32, which has all of them."""
        if self is BFLOAT16:  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


FLOAT32 = FloatType(name="float32", graph="tensor(float)", stored=np.float32, element=np.float32, dlpack=(2, 32))
FLOAT16 = FloatType(name="float16", graph="tensor(float16)", stored=np.float16, element=np.float16, dlpack=(2, 16))
# numpy has no name for it; 16 is onnx.TensorProto.BFLOAT16, and 4 kDLBfloat
BFLOAT16 = FloatType(name="bfloat16", graph="tensor(bfloat16)", stored=np.uint16, element=16, dlpack=(4, 16))
FLOAT_TYPES = {kind.graph: kind for kind in (FLOAT32, FLOAT16, BFLOAT16)}


@dataclass(frozen=True)
class Output:
    """One output of one call.

    shape: what the caller sees of it: (B,T,V), say.
    row: numbers from the beginning of one row, V, to that of the next; 0: as many as it has.
    """

    name: str
    shape: tuple[int, ...]
    row: int = 0
    kind: FloatType = FLOAT32

    @property
    def written(self) -> tuple[int, ...]:
        """The shape that the graph writes."""
        return (*self.shape[:-1], self.row or self.shape[-1])

    @property
    def nbytes(self) -> int:
        return math.prod(self.written) * self.kind.bytes

    @property
    def is_plain(self) -> bool:
        """Written as a caller gets it: float32, one row after the other."""
        return self.kind is FLOAT32 and self.written == self.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """In numbers, as DLPack counts them."""
        return tuple(math.prod(self.written[axis + 1 :]) for axis in range(len(self.shape)))

    def take(self, written: NDArray[Any], out: Floats) -> None:
        """What counts of some rows (N,row) into as many of the caller's (N,V)."""
        out[...] = self.kind.widen(written[:, : self.shape[-1]])
