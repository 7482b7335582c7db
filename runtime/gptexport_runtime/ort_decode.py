"""ONNX Runtime runs the graph `decode` over a cache that it writes into where it lies.

The cache is one allocation. Input and output of a layer are bound to the same part of it, so that ONNX Runtime's
kernels see that nothing has to be copied. Rows lie apart: some of them can be run without the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.contract import (
    GRAPH_DECODE,
    INPUT_IDS,
    LENGTHS,
    LOGITS,
    PAST_LENGTHS,
    past_names,
    present_names,
)
from gptexport_runtime.errors import ArtifactError, ExecutionError
from gptexport_runtime.ort import choose_device, open_session, read_contract, usable_cores
from gptexport_runtime.providers import first_line, import_onnxruntime

BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: numpy has no name for it
# by the type of the graph's inputs: what numpy holds it as, and what ONNX Runtime is told it is
CACHE_TYPES: dict[str, tuple[type[np.generic], Any]] = {
    "tensor(float)": (np.float32, np.float32),
    "tensor(float16)": (np.float16, np.float16),
    "tensor(bfloat16)": (np.uint16, BFLOAT16),
}


class OrtDecoder:
    """The graph `decode`, open. Threads may share it; each call needs memory of its own."""

    def __init__(self, session: Any, path: Path, device: str, threads: int) -> None:
        self.info = read_contract(session, path, GRAPH_DECODE)
        self.device = device
        self.threads = threads
        self._session = session
        self._path = path
        self.n_layer, self.n_head, self.head_size, kind = _read_cache(session, path)
        self._dtype, self._element = CACHE_TYPES[kind]

    def allocate(self, rows: int, capacity: int) -> Memory:
        """Zeroed memory for the keys and values of `rows` rows of up to `capacity` tokens."""
        shape = (2, self.n_layer, rows, self.n_head, capacity, self.head_size)
        return Memory(shape, self._dtype, self.device)

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
        binding = memory.binding(self._session, self._element, rows)
        binding.bind_cpu_input(INPUT_IDS, ids)
        binding.bind_cpu_input(LENGTHS, lengths)
        binding.bind_cpu_input(PAST_LENGTHS, past_lengths)
        binding.bind_output(LOGITS, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            B, T = ids.shape
            raise ExecutionError(
                f"{self._path} failed on {self.device} at B={B}, T={T}: {first_line(error)}"
            ) from error


class Memory:
    """Keys and values (2, n_layer, B, n_head, S, head_size) of a cache, on the device that runs the graph."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], device: str) -> None:
        self.shape = shape
        self.device = device
        # untouched pages of zeros cost nothing; what was never written is multiplied by 0, so it must not be NaN
        self._host = np.zeros(shape, dtype)
        self._value: Any = None
        if device != "cpu":
            self._value = import_onnxruntime().OrtValue.ortvalue_from_numpy(self._host, device, 0)
        self._bound: tuple[slice, Any] | None = None

    def binding(self, session: Any, element: Any, rows: slice) -> Any:
        """ONNX Runtime's binding of every layer's cache, in and out, to the memory of `rows`."""
        if self._bound is None or self._bound[0] != rows:
            self._bound = (rows, self._bind(session, element, rows))
        return self._bound[1]

    def _bind(self, session: Any, element: Any, rows: slice) -> Any:
        binding = session.io_binding()
        shape = (rows.stop - rows.start, *self.shape[3:])
        row_bytes = self._host.strides[2]
        start = self._host.ctypes.data if self._value is None else self._value.data_ptr()
        for layer in range(self.shape[1]):
            for side, names in enumerate(zip(past_names(layer), present_names(layer), strict=True)):
                place = start + side * self._host.strides[0] + layer * self._host.strides[1] + rows.start * row_bytes
                binding.bind_input(names[0], self.device, 0, element, shape, place)
                binding.bind_output(names[1], self.device, 0, element, shape, place)
        return binding

    def copy_rows(self, source: Memory, rows: NDArray[np.int64], length: int) -> None:
        """Row i becomes row rows[i] of `source`, as far as `length`; ascending rows of itself, or any of another."""
        theirs, mine = source._read(), self._read()
        for i, row in enumerate(rows):
            if mine is not theirs or i != row:
                mine[:, :, i, :, :length] = theirs[:, :, row, :, :length]
        if self._value is not None:
            self._value.update_inplace(mine)

    def _read(self) -> NDArray[Any]:
        return self._host if self._value is None else self._value.numpy()


def open_decoder(
    path: Path, device: str, *, threads: int | None = None, prepack: bool = True, spin: bool = True
) -> OrtDecoder:
    """Open a bundle's `decode` graph. Arguments and errors as those of `ort.open_graph`."""
    device, threads = choose_device(device), threads or usable_cores()
    return OrtDecoder(open_session(path, device, threads, prepack, spin), path, device, threads)


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
