"""Bound to the GPU's memory: inputs, outputs and caches stay there until they are wanted on the host.

ONNX Runtime captures a CUDA graph when a run has a new `gpu_graph_id`: it runs twice to warm up, a third time to
capture, and replays (InferenceSession::RunImpl, CUDAExecutionProvider::OnRunEnd), all of which computes the same. It
keeps graphs for each thread (PerThreadContext), and frees none before the session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.backends.gpu.memory import DeviceMemory
from gptexport_runtime.backends.gpu.runner import Call, DeviceRunner
from gptexport_runtime.backends.ort.binding import Floats, Ids
from gptexport_runtime.backends.ort.cache import CacheRows
from gptexport_runtime.backends.ort.package import first_line, import_onnxruntime
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.errors import BackendUnavailableError, ExecutionError

if TYPE_CHECKING:
    from gptexport_runtime.backends.ort.options import OpenOptions

# before it, GatherND recorded an address of the host's that was gone when the graph was replayed (onnxruntime#32120)
GRAPHS_SINCE = (1, 31)
# RunOptions (onnxruntime_run_options_config_keys.h)
GRAPH_ID = "gpu_graph_id"
NO_GRAPH = -1  # kCudaGraphAnnotationSkip: neither captured nor replayed
CAPACITY_STEP = 256  # tokens; caches of like capacity take each other's memory, and the CUDA graphs over it


class DeviceStore:
    """A cache in the GPU's memory."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], memory: DeviceMemory) -> None:
        self.device = memory.device
        self._memory = memory
        self._layers, self._rows = shape[1], shape[2]
        self._row_bytes = math.prod(shape[3:]) * np.dtype(dtype).itemsize
        # what was never written is multiplied by 0, so it must not be NaN
        self._buffer = memory.allocate(2 * self._layers * self._rows * self._row_bytes, zeroed=True)
        self.address = self._buffer.address

    def copy_rows(self, source: DeviceStore, rows: list[tuple[int, int]], length: int) -> None:
        """All of each row: its share of a layer is one piece of memory, and the device has the bandwidth."""
        self._memory.copies.within(
            (self._at(part, i), source._at(part, row), self._row_bytes)
            for i, row in rows
            for part in range(2 * self._layers)  # keys and values of each layer
        )

    def _at(self, part: int, row: int) -> int:
        return self.address + (part * self._rows + row) * self._row_bytes


class _Program:
    """A session of ONNX Runtime, with CUDA graphs or without."""

    def __init__(self, open_session: Callable[[bool], Any], captures: bool, device: str, what: str) -> None:
        self.session = open_session(captures)
        self.captures = captures
        self.device = device
        self._open, self._what = open_session, what
        self._options: dict[int, Any] = {}  # ONNX Runtime's RunOptions, by number of the graph

    def stop_capturing(self) -> None:
        """Open the session anew: what a failed capture leaves behind is in the old one."""
        self.captures = False
        self._options.clear()
        self.session = self._open(False)

    def run(self, binding: Any, shape: tuple[int, ...], number: int = NO_GRAPH) -> None:
        """`shape`: of the ids, (B,T), for errors."""
        try:
            self.session.run_with_iobinding(binding, self._run_options(number))
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            B, T = shape
            raise ExecutionError(
                f"{self._what} failed on {self.device} at B={B}, T={T}: {first_line(error)}."
            ) from error

    def _run_options(self, number: int) -> Any:
        if number not in self._options:
            options = import_onnxruntime().RunOptions()
            if self.captures:
                options.add_run_config_entry(GRAPH_ID, str(number))
            self._options[number] = options
        return self._options[number]


@dataclass(frozen=True, eq=False, kw_only=True)
class _OrtCall(Call):
    program: _Program
    cache: CacheRows | None

    def run(self, inputs: int, output: int) -> None:
        session = self.program.session
        binding = self.cache.binding(session) if self.cache else session.io_binding()
        self.program.run(self._bound(binding, inputs, output), self.ids_shape)

    def record(self, inputs: int, output: int, number: int) -> _Recording:
        """ONNX Runtime captures when it first runs with this number."""
        session = self.program.session
        binding = self.cache.new_binding(session) if self.cache else session.io_binding()
        return _Recording(self.program, self._bound(binding, inputs, output), self.ids_shape, number)

    @property
    def key(self) -> tuple[object, ...]:
        return (*super().key, self.cache.key if self.cache else ())

    def _bound(self, binding: Any, inputs: int, output: int) -> Any:
        """`binding`, with the feed, which lies one after the other from `inputs`, and the output in it."""
        for name, value in self.feed.items():
            binding.bind_input(name, self.program.device, 0, np.int64, value.shape, inputs)
            inputs += 8 * math.prod(value.shape)
        written = self.output
        binding.bind_output(written.name, self.program.device, 0, written.kind.element, written.written, output)
        return binding


@dataclass(frozen=True)
class _Recording:
    """Holds nothing of the call that it was made from: a cache of that, or a lender's tensor, would never be freed."""

    program: _Program
    binding: Any
    shape: tuple[int, ...]  # of the ids, (B,T)
    number: int  # ONNX Runtime's gpu_graph_id

    def replay(self) -> None:
        self.program.run(self.binding, self.shape, self.number)

    def run(self) -> None:
        self.program.run(self.binding, self.shape)


class OrtDeviceRunner:
    """A session whose calls are bound to the GPU's memory. Threads take turns."""

    def __init__(
        self, program: _Program, memory: DeviceMemory, head: Head, *, captured_tokens: int, required: bool, what: str
    ) -> None:
        self._program, self._memory, self._head = program, memory, head
        self._runner = DeviceRunner(
            memory,
            captures=program.captures,
            captured_tokens=captured_tokens,
            required=required,
            what=what,
            stopped=program.stop_capturing,
        )

    @property
    def session(self) -> Any:
        return self._program.session

    @property
    def captured_graphs(self) -> int:
        return self._runner.captured_graphs

    def run(self, feed: Mapping[str, Ids], output: Output, out: Floats, cache: CacheRows | None = None) -> None:
        self._runner.compute(self._call(feed, output, cache), out)

    def run_on_device(self, feed: Mapping[str, Ids | Borrowed], output: Output) -> DeviceLogits:
        buffer = self._runner.compute_on_device(self._call(feed, output, None))
        return DeviceLogits(buffer, output, self._memory.dlpack_device)

    def _call(self, feed: Mapping[str, Ids | Borrowed], output: Output, cache: CacheRows | None) -> _OrtCall:
        # of a head with a cache single tokens repeat; prompts are of many lengths, and over many caches
        repeats = not self._head.cached or next(iter(feed.values())).shape[1] == 1
        return _OrtCall(feed=feed, output=output, repeats=repeats, program=self._program, cache=cache)


class DeviceBinding:
    """See binding.Binding."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory

    def open(self, open_session: Callable[[bool], Any], head: Head, options: OpenOptions, what: str) -> OrtDeviceRunner:
        """Raises: BackendUnavailableError: CUDA graphs were asked for, and are not to be had."""
        wanted = options.cuda.graphs
        version = import_onnxruntime().__version__
        new_enough = tuple(int(part) for part in version.split(".")[:2]) >= GRAPHS_SINCE
        if wanted and not new_enough:
            raise BackendUnavailableError(
                f"CUDA graphs need onnxruntime-gpu {'.'.join(map(str, GRAPHS_SINCE))} or newer; {version} is "
                "installed. Upgrade it, or load without CudaOptions(graphs=True)."
            )
        # a loop is control flow, which cannot be captured
        captures = wanted is not False and new_enough and not head.loops
        program = self._program(open_session, captures, bool(wanted), what)
        tokens = options.cuda.captured_tokens
        return OrtDeviceRunner(program, self.memory, head, captured_tokens=tokens, required=bool(wanted), what=what)

    def round_capacity(self, capacity: int) -> int:
        return -(-capacity // CAPACITY_STEP) * CAPACITY_STEP

    def allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceStore:
        return DeviceStore(shape, dtype, self.memory)

    def borrow(self, ids: object) -> Borrowed | None:
        return self.memory.borrow(ids)

    def read(self, ids: Borrowed) -> Ids:
        return self.memory.read(ids)

    def _program(self, open_session: Callable[[bool], Any], captures: bool, wanted: bool, what: str) -> _Program:
        """With CUDA graphs where it can have them: ONNX Runtime refuses them for nodes on the CPU too."""
        try:
            return _Program(open_session, captures, self.memory.device, what)
        except Exception:
            if wanted or not captures:
                raise
            return _Program(open_session, False, self.memory.device, what)
