"""How a graph's inputs, outputs and cache are bound to memory. One way for each kind of memory: host.py, device.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.heads import Head

if TYPE_CHECKING:
    from gptexport_runtime.backends.ort.cache import CacheRows
    from gptexport_runtime.backends.ort.options import OpenOptions

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Store(Protocol):
    """The memory of a cache (2, n_layer, B, n_head, S, head_size), zeroed: one allocation."""

    device: str  # as ONNX Runtime calls it

    @property
    def address(self) -> int: ...

    def copy_rows(self, source: Self, rows: list[tuple[int, int]], length: int) -> None:
        """For each (i, j) of `rows` row i becomes what row j of `source` is, as far as `length` tokens."""
        ...


class Runner(Protocol):
    """An open session of ONNX Runtime, and what its calls are bound to. Arrays are contiguous and on the host."""

    @property
    def session(self) -> Any: ...  # onnxruntime.InferenceSession, which has no types
    @property
    def captured_graphs(self) -> int: ...

    def run(self, feed: Mapping[str, Ids], output: Output, out: Floats, cache: CacheRows | None = None) -> None:
        """Compute `output` of `feed`, whose first value is (B,T), into `out`, which has the output's shape.

        Raises:
            ExecutionError: ONNX Runtime or the device failed.
        """
        ...

    def run_on_device(self, feed: Mapping[str, Ids | Borrowed], output: Output) -> DeviceLogits:
        """Like `run`, into memory of its own where the graph runs."""
        ...


class Binding(Protocol):
    """The memory that all graphs of a backend are bound to."""

    def open(self, open_session: Callable[[bool], Any], head: Head, options: OpenOptions, what: str) -> Runner:
        """Open a session by `open_session(captures)`, where `captures` is whether CUDA graphs will be captured.

        Args:
            what: names the graph in errors.
        """
        ...

    def round_capacity(self, capacity: int) -> int:
        """The capacity that a cache of at least `capacity` tokens a row is given."""
        ...

    def allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        """The `Store` of a cache of this shape. Any: one binding's stores are copied among themselves alone."""
        ...

    def borrow(self, ids: object) -> Borrowed | None: ...
    def read(self, ids: Borrowed) -> Ids: ...
