"""The little of CUDA that a session needs: memory, copies, a stream, captured graphs. Through cuda-python, no torch."""

from __future__ import annotations

import importlib
import types
from typing import Any

from gptexport_runtime.errors import BackendUnavailableError, ExecutionError

INSTALL = "pip install 'cuda-python>=13'"
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def import_cudart() -> types.ModuleType:
    """CUDA's runtime API, of cuda-python.

    Raises:
        BackendUnavailableError: cuda-python is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendUnavailableError(f"cuda-python does not import: {error}. `{INSTALL}`.") from error


def call(cudart: Any, name: str, *arguments: Any) -> Any:
    """Call a function of CUDA's by name, and return what it gives besides its error code.

    Raises:
        ExecutionError: the code is not success.
    """
    code, *values = getattr(cudart, name)(*arguments)
    if int(code):
        advice = " The GPU's memory is full: fewer threads, smaller batches, or an engine with a smaller --max."
        raise ExecutionError(f"{name} failed: CUDA error {int(code)}.{advice if int(code) == OUT_OF_MEMORY else ''}")
    return values[0] if len(values) == 1 else tuple(values)


class Buffer:
    """Device memory that grows and never shrinks. Freed with the object."""

    def __init__(self, cudart: Any, size: int = 0) -> None:
        self._cudart = cudart
        self.address = 0
        self.size = 0
        self.reserve(size)

    def reserve(self, size: int) -> bool:
        """Make it at least `size` bytes; what it held is lost if it moves. True: it moved."""
        if size <= self.size:
            return False
        self.free()
        self.address = int(call(self._cudart, "cudaMalloc", size))
        self.size = size
        return True

    def free(self) -> None:
        if self.address:
            self._cudart.cudaFree(self.address)
        self.address = self.size = 0

    def __del__(self) -> None:
        self.free()


class Stream:
    """A queue of work on the GPU that does not wait for the default one."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._stream = call(cudart, "cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking)
        self.handle = int(self._stream)

    def to_device(self, address: int, host: int, size: int) -> None:
        self._copy(address, host, size, self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def to_host(self, host: int, address: int, size: int) -> None:
        self._copy(host, address, size, self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def wait(self) -> None:
        """Until everything in it is done; errors of the work show here."""
        call(self._cudart, "cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        # thread-local: what other threads do meanwhile, allocations for example, is none of this capture's business
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cudart, "cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> CapturedGraph:
        graph = call(self._cudart, "cudaStreamEndCapture", self._stream)
        try:
            executable = call(self._cudart, "cudaGraphInstantiate", graph, 0)
        finally:
            self._cudart.cudaGraphDestroy(graph)
        return CapturedGraph(self._cudart, executable)

    def launch(self, graph: CapturedGraph) -> None:
        call(self._cudart, "cudaGraphLaunch", graph.executable, self._stream)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        call(self._cudart, "cudaMemcpyAsync", to, source, size, kind, self._stream)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._cudart.cudaStreamDestroy(self._stream)


class CapturedGraph:
    """Work that was recorded once, to be repeated without TensorRT's part on the CPU. Freed with the object."""

    def __init__(self, cudart: Any, executable: Any) -> None:
        self._cudart = cudart
        self.executable = executable

    def __del__(self) -> None:
        self._cudart.cudaGraphExecDestroy(self.executable)
