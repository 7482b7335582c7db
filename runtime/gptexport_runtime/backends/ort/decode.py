"""ONNX Runtime runs the graph `decode` over a cache that it writes into where it lies.

The cache is one allocation. Input and output of a layer are bound to the same part of it, so that ONNX Runtime's
kernels see that nothing has to be copied. Rows lie apart: some of them can be run without the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.memory import HostPlace, Place
from gptexport_runtime.backends.ort.bound import Bound, Call
from gptexport_runtime.backends.ort.bound_graph import open_bound
from gptexport_runtime.backends.ort.cuda_options import CudaOptions
from gptexport_runtime.backends.ort.graph import TOKENS_AT_ONCE, open_session, usable_cores
from gptexport_runtime.backends.ort.providers import first_line
from gptexport_runtime.backends.ort.signature import read_contract
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import INPUT_IDS, LENGTHS, LOGITS, PAST_LENGTHS, past_names, present_names
from gptexport_runtime.errors import ArtifactError, ExecutionError

CAPACITY_STEP = 256  # tokens, on the GPU
GPU_TOKENS_AT_ONCE = 16384  # of prompts: more would not be faster, and their activations take memory
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: numpy has no name for it
# by the type of the graph's inputs: what numpy holds it as, and what ONNX Runtime is told it is
CACHE_TYPES: dict[str, tuple[type[np.generic], Any]] = {
    "tensor(float)": (np.float32, np.float32),
    "tensor(float16)": (np.float16, np.float16),
    "tensor(bfloat16)": (np.uint16, BFLOAT16),
}


class OrtDecoder:
    """The graph `decode`, open. Threads may share it; each call needs memory of its own."""

    def __init__(self, session: Any, path: Path, place: Place, threads: int, bound: Bound | None = None) -> None:
        """`bound`: the session's, on the GPU; None on the CPU, which reads and writes the caller's arrays."""
        self.info = read_contract(session, path, heads.DECODE.name)
        self.device = place.device
        self.threads = threads
        self.bound = bound
        self.tokens_at_once = TOKENS_AT_ONCE if bound is None else GPU_TOKENS_AT_ONCE
        self._session = session
        self._path = path
        self._place = place
        self.n_layer, self.n_head, self.head_size, kind = _read_cache(session, path)
        self._dtype, self._element = CACHE_TYPES[kind]

    def allocate(self, rows: int, capacity: int) -> Memory:
        """Zeroed memory for the keys and values of `rows` rows of up to `capacity` tokens."""
        if self.bound is not None:  # caches of like capacity then take each other's memory, and its CUDA graphs
            capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        shape = (2, self.n_layer, rows, self.n_head, capacity, self.head_size)
        return Memory(shape, self._dtype, self._place)

    def run(
        self,
        memory: Memory,
        rows: slice,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        past_lengths: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> None:
        """Append ids (B,T), lengths (B) of them real, to `rows`, which hold past_lengths (B); logits into out (B,V).

        More than one token each is for rows that are all empty, or for a single row: ONNX Runtime's attention takes
        no more (GroupQueryAttention, "batch_size must be 1 when sequence_length > 1 and past context is given").

        Raises:
            ExecutionError: ONNX Runtime failed.
        """
        held = CachedRows(memory, rows, self._element)
        feed = {INPUT_IDS: ids, LENGTHS: lengths, PAST_LENGTHS: past_lengths}
        if self.bound is not None:
            self.bound.compute(Call(feed, LOGITS, out.shape, held, captures=ids.shape[1] == 1), out)
            return
        binding = held.binding(self._session, own=False)
        for name, values in feed.items():
            binding.bind_cpu_input(name, values)
        binding.bind_output(LOGITS, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            B, T = ids.shape
            raise ExecutionError(
                f"{self._path} failed on {self.device} at B={B}, T={T}: {first_line(error)}"
            ) from error


class Memory:
    """Keys and values (2, n_layer, B, n_head, S, head_size) of a cache, where the graph runs."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], place: Place) -> None:
        self.shape = shape
        self.place = place
        # bytes from one side, layer and row to the next
        row = math.prod(shape[3:]) * np.dtype(dtype).itemsize
        self.strides = (shape[1] * shape[2] * row, shape[2] * row, row)
        # what was never written is multiplied by 0, so it must not be NaN
        self._block = place.allocate(shape[0] * self.strides[0], zeroed=True)
        self.bound: tuple[Any, slice, Any] | None = None  # session, rows and binding of the last call
        self._host = self._block.as_array(shape, dtype) if isinstance(place, HostPlace) else None

    def address(self, side: int, layer: int, row: int) -> int:
        return self._block.address + side * self.strides[0] + layer * self.strides[1] + row * self.strides[2]

    def copy_rows(self, source: Memory, rows: NDArray[np.int64], length: int) -> None:
        """Row i becomes row rows[i] of `source`, as far as `length`; ascending rows of itself, or any of another."""
        moved = [(i, int(row)) for i, row in enumerate(rows) if self is not source or i != row]
        if self._host is not None and source._host is not None:
            for i, row in moved:
                self._host[:, :, i, :, :length] = source._host[:, :, row, :, :length]
            return
        assert self.shape[3:] == source.shape[3:]
        # a row and layer is one piece of memory: whole ones are few copies, and the device has the bandwidth
        self.place.copy(
            (self.address(side, layer, i), source.address(side, layer, row), self.strides[2])
            for i, row in moved
            for side in range(2)
            for layer in range(self.shape[1])
        )


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Some rows of a cache, to be read and written by one call."""

    memory: Memory
    rows: slice
    element: Any  # the cache's type, as ONNX Runtime is told it

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where addresses and shapes are."""
        return (self.memory.address(0, 0, self.rows.start), self.rows.stop - self.rows.start, *self.memory.shape)

    def binding(self, session: Any, *, own: bool) -> Any:
        """ONNX Runtime's binding of every layer's cache, in and out, to the same memory. `own`: nobody else's."""
        kept = self.memory.bound
        if not own and kept is not None and kept[0] is session and kept[1] == self.rows:
            return kept[2]
        binding = session.io_binding()
        shape = (self.rows.stop - self.rows.start, *self.memory.shape[3:])
        for layer in range(self.memory.shape[1]):
            for side, names in enumerate(zip(past_names(layer), present_names(layer), strict=True)):
                place = self.memory.address(side, layer, self.rows.start)
                binding.bind_input(names[0], self.memory.place.device, 0, self.element, shape, place)
                binding.bind_output(names[1], self.memory.place.device, 0, self.element, shape, place)
        if not own:
            self.memory.bound = (session, self.rows, binding)
        return binding


def open_decoder(
    path: Path, device: Literal["cpu"], *, threads: int | None = None, prepack: bool = True, spin: bool = True
) -> OrtDecoder:
    """Open a bundle's `decode` graph on the CPU. Arguments and errors as those of `ort.open_graph`."""
    threads = threads or usable_cores()
    return OrtDecoder(open_session(path, device, threads, prepack, spin), path, HostPlace(), threads)


def open_bound_decoder(path: Path, place: Place, *, threads: int | None = None, cuda: CudaOptions) -> OrtDecoder:
    """Open it with the cache on `place`. Arguments and errors as those of `ort_cuda.open_bound_graph`."""
    threads = threads or usable_cores()
    bound = open_bound(path, heads.DECODE.name, threads, place, cuda)
    return OrtDecoder(bound.session, path, place, threads, bound)


def _read_cache(session: Any, path: Path) -> tuple[int, int, int, str]:
    """n_layer, n_head, head_size and the type of the cache that a `decode` graph takes.

    Raises:
        ArtifactError: it is not the contract's.
    """
    inputs, outputs = session.get_inputs()[3:], session.get_outputs()[1:]
    layers = len(inputs) // 2
    got = [value.name for value in (*inputs, *outputs)]
    expected = [name for names in (past_names, present_names) for layer in range(layers) for name in names(layer)]
    sizes = {(*(value.shape[i] for i in (1, 3)), value.type) for value in (*inputs, *outputs) if len(value.shape) == 4}
    if got != expected or len(sizes) != 1:
        raise ArtifactError(f"{path} has no cache that this version knows: {', '.join(got) or 'none'}. Export again.")
    ((n_head, head_size, kind),) = sizes
    if not isinstance(n_head, int) or not isinstance(head_size, int) or kind not in CACHE_TYPES:
        raise ArtifactError(f"{path} has a cache of {kind} ({n_head}, S, {head_size}); expected numbers. Export again.")
    return layers, n_head, head_size, kind
