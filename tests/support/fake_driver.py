"""The CUDA driver as driver.py calls it, in the host's memory. Real C functions, so that ctypes converts as it would.

Strict where the real one is treacherous: work in a stream is done when somebody waits for it and no sooner, copies go
through pinned memory only, memory that was freed may not be touched, and what may not be done during a capture ends it.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from gptexport_runtime.backends.gpu.dlpack import CPU, CUDA, Borrowed, borrow_ids
from gptexport_runtime.backends.gpu.driver import _SIGNATURES, OUT_OF_MEMORY, Driver
from gptexport_runtime.backends.gpu.memory import ALIGNMENT, DeviceMemory

ILLEGAL_ADDRESS = 700
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901

Work = Callable[[], object]


class Block:
    """Memory at an address that is aligned as the driver's is."""

    def __init__(self, size: int) -> None:
        self._memory = (ctypes.c_char * (size + ALIGNMENT))()
        self.address = -(-ctypes.addressof(self._memory) // ALIGNMENT) * ALIGNMENT
        self._size = size

    def __len__(self) -> int:
        return self._size


class FakeLibrary:
    """libcuda.so.1 of a machine with `memory` bytes on its GPU."""

    def __init__(self, memory: int = 1 << 28) -> None:
        self.total = memory
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}  # what is to be done
        self.first_stream = 1 << 40  # of those that were ever made: as large as addresses are
        self.prompt: set[int] = set()  # streams whose work is done at once, if nothing is before it
        self.capturable = True
        self.captures: dict[int, list[Work]] = {}  # by stream, while it captures
        self.graphs: dict[int, list[Work]] = {}  # those that can be launched
        self.launches = 0
        self.contexts = 0
        self.waits_for_all = 0
        self.copied = {"in": 0, "out": 0, "within": 0}  # bytes
        self._invalid: set[int] = set()  # streams whose capture has ended in an error
        self._ended: dict[int, list[Work]] = {}
        self._handles = itertools.count(self.first_stream)  # none is used again
        self._text = ctypes.create_string_buffer(b"the fake says no")
        for name, arguments in _SIGNATURES.items():
            method = getattr(self, "_" + name)
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(method))

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work into a stream, or into what it captures."""
        if stream in self.captures:
            self.captures[stream].append(work)
        elif stream in self.prompt and not self.streams[stream]:
            work()
        else:
            self.streams[stream].append(work)

    def check(self, address: int, size: int) -> None:
        """That the bytes are inside one block that is not freed."""
        assert inside(self.blocks, address, size), "memory that is not, or no longer, allocated"

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
        return self._disturbs() or max((self._cuStreamSynchronize(stream) for stream in self.streams), default=0)

    def _cuMemAlloc_v2(self, address: Any, size: int) -> int:
        if self._disturbs():
            return CAPTURE_UNSUPPORTED
        if sum(map(len, self.blocks.values())) + size > self.total:
            return OUT_OF_MEMORY
        address[0] = self._keep(self.blocks, size)
        return 0

    def _cuMemFree_v2(self, address: int) -> int:
        self._disturbs()
        for stream in self.streams:
            if stream not in self.captures:
                self._cuStreamSynchronize(stream)
        del self.blocks[address]
        return 0

    def _cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> int:
        if not inside(self.blocks, address, size):
            return ILLEGAL_ADDRESS
        self.enqueue(stream, lambda: ctypes.memset(address, value, size))
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
        stream[0] = next(self._handles)
        self.streams[stream[0]] = []
        return 0 if flags == 1 else 1

    def _cuStreamDestroy_v2(self, stream: int) -> int:
        del self.streams[stream]
        return 0

    def _cuStreamSynchronize(self, stream: int) -> int:
        if stream in self.captures:
            return CAPTURE_UNSUPPORTED
        for work in self.streams[stream]:
            work()
        self.streams[stream].clear()
        return 0

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        self.captures[stream] = []
        return 0 if mode == 1 else 1

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        work = self.captures.pop(stream)
        if stream in self._invalid or not self.capturable:
            self._invalid.discard(stream)
            return CAPTURE_INVALIDATED
        graph[0] = next(self._handles)
        self._ended[graph[0]] = work
        return 0

    def _cuGraphInstantiateWithFlags(self, executable: Any, graph: int, _flags: int) -> int:
        executable[0] = next(self._handles)
        self.graphs[executable[0]] = self._ended[graph]
        return 0

    def _cuGraphDestroy(self, graph: int) -> int:
        del self._ended[graph]
        return 0

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:
        self.launches += 1
        self.streams[stream] += self.graphs[executable]
        return 0

    def _cuGraphExecDestroy(self, executable: int) -> int:
        del self.graphs[executable]
        return 0

    def _cuGetErrorString(self, _code: int, text: Any) -> int:
        text[0] = ctypes.cast(self._text, ctypes.c_char_p)
        return 0

    def _disturbs(self) -> int:
        """What may not be done while a stream captures."""
        self._invalid |= set(self.captures)
        return CAPTURE_UNSUPPORTED if self.captures else 0

    @staticmethod
    def _keep(where: dict[int, Any], size: int) -> int:
        block = Block(size)
        where[block.address] = block
        return block.address

    def _copy(self, stream: int, to: int, mine: Any, source: int, theirs: Any, size: int) -> int:
        if not inside(mine, to, size) or not inside(theirs, source, size):
            return ILLEGAL_ADDRESS
        self.enqueue(stream, lambda: ctypes.memmove(to, source, size))
        return 0


def inside(blocks: dict[int, Any], address: int, size: int) -> bool:
    """The bytes are inside one block that is not freed."""
    return any(start <= address and address + size <= start + len(block) for start, block in list(blocks.items()))


class FakeMemory(DeviceMemory):
    """A GPU's memory that ONNX Runtime's CPU provider can be bound to."""

    device = "cpu"
    dlpack_device = (CPU, 0)

    def __init__(self, library: FakeLibrary | None = None) -> None:
        self.library = library or FakeLibrary()
        super().__init__(Driver(self.library))

    def borrow(self, ids: Any) -> Borrowed | None:
        """What says that it is on a GPU, and is not: numpy's arrays are not lent."""
        on_gpu = hasattr(ids, "__dlpack_device__") and tuple(ids.__dlpack_device__()) == (CUDA, 0)
        return borrow_ids(ids, self.copies.stream) if on_gpu else None


class OnTheGpu:
    """A tensor of another library, in the fake's memory, that remembers which streams it was asked for."""

    def __init__(self, library: FakeLibrary, ids: np.ndarray[Any, Any], *, offset: int = 0) -> None:
        """`offset`: bytes from an address that is aligned."""
        block = Block(ids.nbytes + offset)
        library.blocks[block.address] = block
        memory = (ctypes.c_char * ids.nbytes).from_address(block.address + offset)
        self.ids = np.frombuffer(memoryview(memory), ids.dtype).reshape(ids.shape)
        self.ids[...] = ids
        self.streams: list[Any] = []
        self._block = block

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.ids.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, 0)
