"""A key-value cache in ONNX Runtime: one allocation, which the graph reads and writes where it lies.

Input and output of a layer are bound to the same part of it, so that ONNX Runtime's kernels see that nothing has to be
copied. Rows lie apart: some of them can be run without the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.ort.binding import Floats, Ids, Store
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.names import INPUT_IDS, LENGTHS, PAST_LENGTHS, past_names, present_names

if TYPE_CHECKING:
    from gptexport_runtime.backends.ort.decoder import OrtDecoder


class OrtCache:
    """Keys and values (2, n_layer, B, n_head, S, head_size) of a cache, where the graph runs."""

    def __init__(self, decoder: OrtDecoder, shape: tuple[int, ...], store: Store) -> None:
        self.shape = shape
        self.store = store
        self.element = decoder.element
        # bytes from one side, layer and row to the next
        row = math.prod(shape[3:]) * np.dtype(decoder.dtype).itemsize
        self._strides = (shape[1] * shape[2] * row, shape[2] * row, row)
        self._decoder = decoder
        self._bound: tuple[Any, slice, Any] | None = None  # session, rows and binding of the last call

    def run(self, rows: slice, ids: Ids, lengths: Ids, past_lengths: Ids, out: Floats) -> None:
        """See base.CacheMemory. ONNX Runtime's attention takes no more than is said there.

        (GroupQueryAttention, "batch_size must be 1 when sequence_length > 1 and past context is given".)
        """
        feed = {INPUT_IDS: ids, LENGTHS: lengths, PAST_LENGTHS: past_lengths}
        self._decoder.runner.run(feed, Output(self._decoder.output, out.shape), out, CacheRows(self, rows))
        self._decoder.check()

    def keep(self, rows: NDArray[np.int64], length: int) -> None:
        moved = [(i, int(row)) for i, row in enumerate(rows) if i != row]
        self.store.copy_rows(self.store, moved, length)

    def fork(self, rows: NDArray[np.int64], length: int) -> OrtCache:
        copy = self._decoder.allocate(len(rows), self.shape[4])
        copy.store.copy_rows(self.store, [(i, int(row)) for i, row in enumerate(rows)], length)
        return copy

    def address(self, side: int, layer: int, row: int) -> int:
        sides, layers, rows = self._strides
        return self.store.address + side * sides + layer * layers + row * rows

    def binding(self, session: Any, rows: slice) -> Any:
        """ONNX Runtime's binding of these rows in `session`: that of the last call, where it was of the same."""
        if self._bound is None or self._bound[0] is not session or self._bound[1] != rows:
            self._bound = (session, rows, self.new_binding(session, rows))
        return self._bound[2]

    def new_binding(self, session: Any, rows: slice) -> Any:
        """ONNX Runtime's binding of every layer's cache, in and out, to the same memory."""
        binding = session.io_binding()
        shape = (rows.stop - rows.start, *self.shape[3:])
        for layer in range(self.shape[1]):
            for side, names in enumerate(zip(past_names(layer), present_names(layer), strict=True)):
                at = self.address(side, layer, rows.start)
                binding.bind_input(names[0], self.store.device, 0, self.element, shape, at)
                binding.bind_output(names[1], self.store.device, 0, self.element, shape, at)
        return binding


@dataclass(frozen=True, eq=False)
class CacheRows:
    """Some rows of a cache, to be read and extended by one call."""

    cache: OrtCache
    rows: slice

    @property
    def key(self) -> tuple[int, ...]:
        """Equal where addresses and shapes are."""
        return (self.cache.address(0, 0, self.rows.start), self.rows.stop - self.rows.start, *self.cache.shape)

    def binding(self, session: Any) -> Any:
        return self.cache.binding(session, self.rows)

    def new_binding(self, session: Any) -> Any:
        return self.cache.new_binding(session, self.rows)
