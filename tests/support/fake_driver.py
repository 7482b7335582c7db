"""The CUDA driver as driver.py calls it, in the host's memory. Real C functions, so that ctypes converts as it would.

Strict where the real one is treacherous: work in a stream is done when somebody waits for it and no sooner, copies go
through pinned memory only, and memory that was freed may not be touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from gptexport_runtime.backends.gpu.dlpack import CPU
from gptexport_runtime.backends.gpu.driver import _SIGNATURES, OUT_OF_MEMORY, Driver
from gptexport_runtime.backends.gpu.memory import CudaPlace

ILLEGAL_ADDRESS = 700


class FakeLibrary:
    """libcuda.so.1 of a machine with `memory` bytes on its GPU."""

    def __init__(self, memory: int = 1 << 28) -> None:
        self.total = memory
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], object]]] = {}
        self.contexts = 0
        self.waits_for_all = 0
        self.copied = {"in": 0, "out": 0, "within": 0}  # bytes
        self._text = ctypes.create_string_buffer(b"the fake says no")
        for name, arguments in _SIGNATURES.items():
            method = getattr(self, "_" + name)
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(method))

    def _cuDevicePrimaryCtxRetain(self, context: Any, _device: int) -> int:
        self.contexts += 1
        context[0] = 77
        return 0

    def _cuDevicePrimaryCtxRelease_v2(self, _device: int) -> int:
        self.contexts -= 1
        return 0

    def _cuCtxSetCurrent(self, context: int) -> int:
        return 0 if context == 77 else 201

    def _cuCtxSynchronize(self) -> int:
        self.waits_for_all += 1
        return max((self._cuStreamSynchronize(stream) for stream in self.streams), default=0)

    def _cuMemAlloc_v2(self, address: Any, size: int) -> int:
        if sum(map(len, self.blocks.values())) + size > self.total:
            return OUT_OF_MEMORY
        address[0] = self._keep(self.blocks, size)
        return 0

    def _cuMemFree_v2(self, address: int) -> int:
        self._cuCtxSynchronize()
        del self.blocks[address]
        return 0

    def _cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> int:
        if not inside(self.blocks, address, size):
            return ILLEGAL_ADDRESS
        self.streams[stream].append(partial(ctypes.memset, address, value, size))
        return 0

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        total[0] = self.total
        free[0] = self.total - sum(map(len, self.blocks.values()))
        return 0

    def _cuMemHostAlloc(self, address: Any, size: int, _flags: int) -> int:
        address[0] = self._keep(self.pinned, size)
        return 0

    def _cuMemFreeHost(self, address: int) -> int:
        del self.pinned[address]
        return 0

    def _cuMemcpyHtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> int:
        self.copied["in"] += size
        return self._copy(stream, to, self.blocks, source, self.pinned, size)

    def _cuMemcpyDtoHAsync_v2(self, to: int, source: int, size: int, stream: int) -> int:
        self.copied["out"] += size
        return self._copy(stream, to, self.pinned, source, self.blocks, size)

    def _cuMemcpyDtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> int:
        self.copied["within"] += size
        return self._copy(stream, to, self.blocks, source, self.blocks, size)

    def _cuStreamCreate(self, stream: Any, flags: int) -> int:
        stream[0] = (1 << 40) + len(self.streams)  # as large as addresses are
        self.streams[stream[0]] = []
        return 0 if flags == 1 else 1

    def _cuStreamDestroy_v2(self, stream: int) -> int:
        del self.streams[stream]
        return 0

    def _cuStreamSynchronize(self, stream: int) -> int:
        for work in self.streams[stream]:
            work()
        self.streams[stream].clear()
        return 0

    def _cuGetErrorString(self, _code: int, text: Any) -> int:
        text[0] = ctypes.cast(self._text, ctypes.c_char_p)
        return 0

    @staticmethod
    def _keep(where: dict[int, Any], size: int) -> int:
        memory = (ctypes.c_char * size)()
        where[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _copy(self, stream: int, to: int, mine: Any, source: int, theirs: Any, size: int) -> int:
        if not inside(mine, to, size) or not inside(theirs, source, size):
            return ILLEGAL_ADDRESS
        self.streams[stream].append(partial(ctypes.memmove, to, source, size))
        return 0


def inside(blocks: dict[int, Any], address: int, size: int) -> bool:
    """The bytes are inside one block that is not freed."""
    return any(start <= address and address + size <= start + len(block) for start, block in list(blocks.items()))


class FakePlace(CudaPlace):
    """A GPU's memory that ONNX Runtime's CPU provider can be bound to."""

    device = "cpu"
    dlpack_device = (CPU, 0)

    def __init__(self, library: FakeLibrary | None = None) -> None:
        self.library = library or FakeLibrary()
        super().__init__(Driver(self.library))
