"""Where a graph's inputs, outputs and cache lie: in the host's memory, or in the GPU's. One interface for both.

Everything that is bound to a device is written against it, so that ONNX Runtime's CPU provider runs the same code for
real (tests/runtime/test_bound.py) that its CUDA provider runs.

Order of work. ONNX Runtime's CUDA provider computes in streams of its own, which nothing else waits for
(cudaStreamNonBlocking, cuda_stream_handle.cc), and `run_with_iobinding` returns when they have ended
(CUDAExecutionProvider::OnRunEnd and CudaStream::Flush; CUDAGraphManager::Replay for a captured graph). So what it reads
must be there before it is called, and what it wrote is there when it returns: each method here returns when its work is
done, and no stream ever waits for another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import CPU, CUDA
from gptexport_runtime.backends.gpu.driver import Driver, address_of, move
from gptexport_runtime.errors import ExecutionError

PINNED = 8 << 20  # bytes of each of the two pinned buffers that copies go through
KEPT = 2  # blocks that were given back and are not freed at once
PATIENCE = 8  # allocations that memory which was given back waits for another use
ALIGNMENT = 256  # of cuMemAlloc

# A CUDA graph is captured in the global mode (CUDAGraphManager::CaptureBegin): any allocation or waiting that another
# thread asks the driver for meanwhile fails, and ends the capture. So whoever uses the GPU here takes turns.
TURNS = threading.RLock()


class Block:
    """Memory of a place, its holder's own; given back with the object."""

    def __init__(self, address: int, size: int, give_back: Callable[[int, int], None], keep: object = None) -> None:
        self.address = address
        self.size = size
        self._give_back = give_back
        self._keep = keep

    def as_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """The host's memory as an array, which keeps it."""
        assert isinstance(self._keep, np.ndarray), "it is on a device"
        return self._keep[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def __del__(self) -> None:
        self._give_back(self.address, self.size)


class Place(Protocol):
    """Memory that a graph can be bound to, and the ways in and out. Each call returns when its work is done."""

    @property
    def device(self) -> str: ...  # as ONNX Runtime calls it
    @property
    def dlpack_device(self) -> tuple[int, int]: ...
    @property
    def stream(self) -> int | None: ...  # in which `download` reads: who lends a tensor makes it wait
    def allocate(self, size: int, *, zeroed: bool = False) -> Block: ...
    def upload(self, address: int, source: NDArray[Any]) -> None: ...
    def download(self, address: int, out: NDArray[Any]) -> None: ...
    def copy(self, spans: Iterable[tuple[int, int, int]]) -> None: ...  # (to, from, bytes), within the place


class HostPlace:
    """The host's memory."""

    device = "cpu"
    dlpack_device = (CPU, 0)
    stream = None

    def allocate(self, size: int, *, zeroed: bool = False) -> Block:
        # untouched pages of zeros cost nothing
        memory = (np.zeros if zeroed else np.empty)(max(size, 1), np.uint8)
        return Block(address_of(memory), size, lambda _address, _size: None, keep=memory)

    def upload(self, address: int, source: NDArray[Any]) -> None:
        move(address, address_of(source), source.nbytes)

    def download(self, address: int, out: NDArray[Any]) -> None:
        move(address_of(out), address, out.nbytes)

    def copy(self, spans: Iterable[tuple[int, int, int]]) -> None:
        for to, source, size in spans:
            move(to, source, size)


@dataclass
class _Spare:
    """Device memory that nobody holds."""

    address: int
    size: int
    age: int = 0  # allocations since it was given back


class CudaPlace:
    """The first GPU's memory. Freed when nobody holds the place nor any of its blocks."""

    device = "cuda"
    dlpack_device = (CUDA, 0)

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lanes = [(driver.make_stream(), driver.pin(PINNED)) for _ in range(2)]
        self._spares: list[_Spare] = []
        self._choosing = False  # among them, so that none may be freed
        self._gone = False

    @property
    def stream(self) -> int:
        return self._lanes[0][0]

    def allocate(self, size: int, *, zeroed: bool = False) -> Block:
        """Device memory; that of a block of like size which was given back, where there is one.

        Allocating and freeing cost as much as a small forward does. What was given back is kept for another use, but
        not for long, so that one large call does not hold its memory for ever.

        Raises:
            ExecutionError: the GPU's memory is full.
        """
        size = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        with TURNS:
            self._choosing = True
            try:
                address, held = self._choose(size)
            finally:
                self._choosing = False
            block = Block(address, held, self._take_back)
            if zeroed:
                self._driver.zero(address, size, self.stream)
                self._driver.wait(self.stream)
        return block

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """From a contiguous array. Through pinned memory: else the call may return before the device has it."""
        stream, pinned = self._lanes[0]
        with TURNS:
            for start in range(0, source.nbytes, PINNED):
                size = min(PINNED, source.nbytes - start)
                move(pinned, address_of(source) + start, size)
                self._driver.to_device(address + start, pinned, size, stream)
                self._driver.wait(stream)

    def download(self, address: int, out: NDArray[Any]) -> None:
        """Into a contiguous array of the caller's: while the device writes one pinned buffer, the other is emptied."""
        with TURNS:
            before: tuple[int, int, int] | None = None
            for number, start in enumerate(range(0, out.nbytes, PINNED)):
                stream, pinned = self._lanes[number % 2]
                size = min(PINNED, out.nbytes - start)
                self._driver.to_host(pinned, address + start, size, stream)
                self._empty(before, out)
                before = (number % 2, start, size)
            self._empty(before, out)

    def copy(self, spans: Iterable[tuple[int, int, int]]) -> None:
        with TURNS:
            for to, source, size in spans:
                self._driver.copy(to, source, size, self.stream)
            self._driver.wait(self.stream)

    def free_memory(self) -> int:
        """Bytes that nobody on the device has."""
        return self._driver.memory()[0]

    def _empty(self, filled: tuple[int, int, int] | None, out: NDArray[Any]) -> None:
        if filled is not None:
            lane, start, size = filled
            stream, pinned = self._lanes[lane]
            self._driver.wait(stream)
            move(address_of(out) + start, pinned, size)

    def _choose(self, size: int) -> tuple[int, int]:
        """Address and size of a spare that fits, or of new memory. Spares that nobody wanted for long are freed."""
        found = min((s for s in self._spares if size <= s.size <= 2 * size), key=lambda s: s.size, default=None)
        if found is not None:
            self._spares.remove(found)
            # who gave it back may have queued work that reads it, in a stream that nobody here knows
            self._driver.wait_for_all()
        for spare in self._spares:
            spare.age += 1
        self._free([spare for spare in self._spares if spare.age >= PATIENCE])
        return (found.address, found.size) if found is not None else (self._new(size), size)

    def _new(self, size: int) -> int:
        address = self._driver.allocate(size)
        if address is None:  # what is kept for later is in the way
            self._free(list(self._spares))
            address = self._driver.allocate(size)
        if address is None:
            free, total = self._driver.memory()
            raise ExecutionError(
                f"the GPU's memory is full: {size / 1e6:,.0f} MB are wanted, {free / 1e6:,.0f} of {total / 1e6:,.0f} "
                "are free. Smaller batches, or let go of logits that are still on the device."
            )
        return address

    def _take_back(self, address: int, size: int) -> None:
        self._spares.append(_Spare(address, size))
        if self._gone:  # garbage is collected in any order
            self._free(list(self._spares))
            return
        # whoever lets go of a tensor may do so in the middle of another thread's capture, where nothing may be freed
        if TURNS.acquire(blocking=False):
            try:
                if not self._choosing:
                    self._free(self._spares[:-KEPT])
            finally:
                TURNS.release()

    def _free(self, spares: list[_Spare]) -> None:
        for spare in spares:
            self._spares.remove(spare)
            self._driver.free(spare.address)

    def __del__(self) -> None:
        self._gone = True
        self._free(list(getattr(self, "_spares", ())))
        for stream, pinned in getattr(self, "_lanes", ()):
            self._driver.unpin(pinned)
            self._driver.drop_stream(stream)
