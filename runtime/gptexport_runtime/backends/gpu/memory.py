"""Memory of the first GPU: buffers, which are given back with the object that holds them.

Order of work. ONNX Runtime's CUDA provider computes in streams of its own, which nothing else waits for
(cudaStreamNonBlocking, cuda_stream_handle.cc), and `run_with_iobinding` returns when they have ended
(CUDAExecutionProvider::OnRunEnd and CudaStream::Flush; CUDAGraphManager::Replay for a captured graph). TensorRT is
waited for. So what a backend reads must be there before it is called, and what it wrote is there when it returns: each
copy returns when it is done, and no stream ever waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.copies import Copies
from gptexport_runtime.backends.gpu.dlpack import CUDA, Borrowed, borrow_ids
from gptexport_runtime.backends.gpu.driver import Driver
from gptexport_runtime.backends.gpu.turns import TURNS
from gptexport_runtime.errors import ExecutionError

ALIGNMENT = 256  # bytes, of cuMemAlloc; TensorRT demands it of addresses (NvInferRuntime.h, setTensorAddress)
# Buffers that were given back and are not freed: allocating and freeing take about as long as a small forward. Two
# serve a cache and an output in turn. A guess: what settles it is a trace of cuMemAlloc over real calls on a GPU.
KEPT = 2


class Buffer:
    """Device memory, its holder's own; given back with the object."""

    def __init__(self, address: int, size: int, give_back: Callable[[int, int], None]) -> None:
        self.address = address
        self.size = size
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self.address, self.size)


class DeviceMemory:
    """The first GPU's memory, and the copies to it and from it. Lives as long as it or one of its buffers is held."""

    device = "cuda"  # as ONNX Runtime calls it
    dlpack_device = (CUDA, 0)

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.copies = Copies(driver)
        # address and size of what was given back, the last one last. Appended to at any time and by any thread
        self._free: list[tuple[int, int]] = []
        self._closed = False

    def allocate(self, size: int, *, zeroed: bool = False) -> Buffer:
        """A buffer of at least `size` bytes; one of like size that was given back, where there is one.

        Raises:
            ExecutionError: the GPU's memory is full.
        """
        size = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        with TURNS:
            buffer = Buffer(*(self._reuse(size) or (self._new(size), size)), self._take_back)
            if zeroed:
                self.copies.zero(buffer.address, size)
            self._release(KEPT)
        return buffer

    def borrow(self, ids: Any) -> Borrowed | None:
        """`ids` where they are a tensor in this memory; else None. Raises: as `borrow_ids`."""
        device = getattr(ids, "__dlpack_device__", None)
        if device is None or tuple(device()) != self.dlpack_device:
            return None
        return borrow_ids(ids, self.copies.stream)

    def read(self, ids: Borrowed) -> NDArray[np.int64]:
        """Borrowed ids, copied to the host."""
        host = np.empty(ids.shape, np.int64)
        self.copies.download_borrowed(ids.address, host)
        return host

    def free_bytes(self) -> int:
        """Free bytes of the device."""
        return self.driver.memory()[0]

    def _reuse(self, size: int) -> tuple[int, int] | None:
        fitting = [(at, held) for at, held in self._free.copy() if size <= held <= 2 * size]
        if not fitting:
            return None
        found = min(fitting, key=lambda buffer: buffer[1])
        self._free.remove(found)
        # its last user may have queued work that reads it, in a stream that is not known here
        self.driver.wait_for_all()
        return found

    def _new(self, size: int) -> int:
        address = self.driver.allocate(size)
        if address is None:
            self._release(0)
            address = self.driver.allocate(size)
        if address is None:
            free, total = self.driver.memory()
            raise ExecutionError(
                f"the GPU's memory is full: {size / 1e6:,.0f} MB are wanted, {free / 1e6:,.0f} of {total / 1e6:,.0f} "
                "are free. Smaller batches, or let go of logits that are still on the device."
            )
        return address

    def _take_back(self, address: int, size: int) -> None:
        self._free.append((address, size))
        if self._closed:  # garbage is collected in any order
            self._release(0)
            return
        # a buffer may be let go of in the middle of a capture, this thread's or another's, where nothing may be freed
        with TURNS.if_free() as free:
            if free:
                self._release(KEPT)

    def _release(self, kept: int) -> None:
        """Free all but the last `kept` that were given back."""
        while len(self._free) > kept:
            address, _ = self._free.pop(0)
            self.driver.free(address)

    def __del__(self) -> None:
        self._closed = True
        if hasattr(self, "_free"):
            self._release(0)
