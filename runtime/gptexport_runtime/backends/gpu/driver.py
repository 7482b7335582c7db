"""The CUDA driver: device memory, pinned memory, copies, streams, captured graphs.

By ctypes, without a package: where ONNX Runtime's CUDA provider or TensorRT runs there is a driver, and device.py opens
the same library. Both work in the device's primary context (their CUDA runtime's), so this does too. Names and types:
https://docs.nvidia.com/cuda/cuda-driver-api, cuda.h; `_v2` where cuda.h's macros say so.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint8, c_uint64, c_ulonglong, c_void_p
from typing import Any

from gptexport_runtime.backends.gpu.device import open_driver
from gptexport_runtime.errors import BackendUnavailableError, ExecutionError

DEVICE = 0  # the first that this process may see, as ONNX Runtime and TensorRT take it
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor it for this
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do does not end the capture

# without these ctypes passes an address as a 32-bit int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemsetD8Async": (c_uint64, c_uint8, c_size_t, c_void_p),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


class Driver:
    """The driver, with the primary context of the first GPU held. Any thread may call."""

    def __init__(self, library: Any) -> None:
        self._functions: dict[str, Any] = {}
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = c_int
            self._functions[name] = function
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), DEVICE)
        self._context = context

    def allocate(self, size: int) -> int | None:
        """Device memory of `size` bytes; None where there is not so much."""
        address = c_uint64()
        code = self._enter("cuMemAlloc_v2", byref(address), size, may_fail=OUT_OF_MEMORY)
        return None if code else address.value

    def free(self, address: int) -> None:
        """After all work of the device that was queued: cuMemFree waits for it."""
        self._functions["cuCtxSetCurrent"](self._context)
        self._functions["cuMemFree_v2"](address)  # its code would be that of work that went wrong earlier

    def zero(self, address: int, size: int, stream: int) -> None:
        self._enter("cuMemsetD8Async", address, 0, size, stream)

    def pin(self, size: int) -> int:
        """Page-locked host memory, which the device reads and writes by itself."""
        address = c_void_p()
        self._enter("cuMemHostAlloc", byref(address), size, 0)
        return int(address.value or 0)

    def unpin(self, address: int) -> None:
        self._functions["cuCtxSetCurrent"](self._context)
        self._functions["cuMemFreeHost"](address)

    def make_stream(self) -> int:
        stream = c_void_p()
        self._enter("cuStreamCreate", byref(stream), NON_BLOCKING)
        return int(stream.value or 0)

    def drop_stream(self, stream: int) -> None:
        self._functions["cuCtxSetCurrent"](self._context)
        self._functions["cuStreamDestroy_v2"](stream)

    def begin_capture(self, stream: int) -> None:
        self._enter("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The work that was put into the stream since, ready to be launched: a handle for `launch`."""
        graph, executable = c_void_p(), c_void_p()
        self._enter("cuStreamEndCapture", stream, byref(graph))
        try:
            self._enter("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self._functions["cuGraphDestroy"](graph)
        return int(executable.value or 0)

    def abandon_capture(self, stream: int) -> None:
        """End a capture whose work failed."""
        graph = c_void_p()
        self._functions["cuCtxSetCurrent"](self._context)
        self._functions["cuStreamEndCapture"](stream, byref(graph))
        if graph.value:
            self._functions["cuGraphDestroy"](graph)

    def launch(self, executable: int, stream: int) -> None:
        self._enter("cuGraphLaunch", executable, stream)

    def drop_graph(self, executable: int) -> None:
        self._functions["cuCtxSetCurrent"](self._context)
        self._functions["cuGraphExecDestroy"](executable)

    def to_device(self, address: int, pinned: int, size: int, stream: int) -> None:
        self._enter("cuMemcpyHtoDAsync_v2", address, pinned, size, stream)

    def to_host(self, pinned: int, address: int, size: int, stream: int) -> None:
        self._enter("cuMemcpyDtoHAsync_v2", pinned, address, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._enter("cuMemcpyDtoDAsync_v2", to, source, size, stream)

    def wait(self, stream: int) -> None:
        """Until everything in the stream is done; errors of the work show here."""
        self._enter("cuStreamSynchronize", stream)

    def wait_for_all(self) -> None:
        """Wait until the device has nothing left to do, whatever queued the work."""
        self._enter("cuCtxSynchronize")

    def memory(self) -> tuple[int, int]:
        """Bytes of the device that are free, and all of them."""
        free, total = c_size_t(), c_size_t()
        self._enter("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def _enter(self, name: str, *arguments: Any, may_fail: int = 0) -> int:
        """Call a function in the context, which each thread has to have as its own first."""
        self._call("cuCtxSetCurrent", self._context)
        return self._call(name, *arguments, may_fail=may_fail)

    def _call(self, name: str, *arguments: Any, may_fail: int = 0) -> int:
        code = int(self._functions[name](*arguments))
        if code and code != may_fail:
            text = c_char_p()
            self._functions["cuGetErrorString"](code, byref(text))
            reason = (text.value or b"unknown error").decode(errors="replace")
            raise ExecutionError(f"{name} failed: CUDA error {code}, {reason}.")
        return code

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._functions["cuDevicePrimaryCtxRelease_v2"](DEVICE)


def load_driver() -> Driver:
    """The driver of this machine's GPU.

    Raises:
        BackendUnavailableError: there is no driver, no GPU, or it gives no context.
    """
    library, reason = open_driver()
    if library is None:
        raise BackendUnavailableError(str(reason))
    try:
        return Driver(library)
    except ExecutionError as error:
        raise BackendUnavailableError(f"the NVIDIA driver gives no context on its GPU: {error}") from error


def address_of(array: Any) -> int:
    """The address of a numpy array's first element."""
    return int(array.ctypes.data)


def move(to: int, source: int, size: int) -> None:
    """Within host memory, without Python's lock meanwhile."""
    ctypes.memmove(to, source, size)
