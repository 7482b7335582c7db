"""What goes to the device and comes from it arrives whole, through two pinned buffers in turn."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gptexport_runtime import ExecutionError
from gptexport_runtime.backends.gpu import copies
from gptexport_runtime.backends.gpu.dlpack import Borrowed
from tests.support.fake_driver import FakeMemory

PAGE = 1024


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    monkeypatch.setattr(copies, "PINNED", PAGE)
    return FakeMemory()


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 3])
def test_what_goes_in_comes_out(size: int, memory: FakeMemory) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    buffer, other = memory.allocate(size), memory.allocate(size, zeroed=True)
    memory.copies.upload(buffer.address, data)
    out = np.empty_like(data)
    memory.copies.download(other.address, out)
    assert not out.any()
    memory.copies.within([(other.address, buffer.address, size)])
    memory.copies.download(other.address, out)
    assert_array_equal(out, data)


def test_pinned_memory_is_two_buffers_whatever_is_copied(memory: FakeMemory) -> None:
    data = np.arange(10 * PAGE, dtype=np.uint8)
    for _ in range(3):
        buffer = memory.allocate(data.nbytes)
        memory.copies.upload(buffer.address, data)
        memory.copies.download(buffer.address, data)
    assert [len(block) for block in memory.library.pinned.values()] == [PAGE, PAGE]


def test_borrowed_ids_are_read_after_their_lender_has_written_them(memory: FakeMemory) -> None:
    """The lender orders its work before one stream; the other copies as soon as it can."""
    ids = np.arange(3 * PAGE // 8).reshape(3, -1)
    buffer = memory.allocate(ids.nbytes, zeroed=True)
    memory.library.prompt = set(memory.library.streams) - {memory.copies.stream}
    lenders_work = memory.library.streams[memory.copies.stream]
    lenders_work.append(lambda: ctypes.memmove(buffer.address, ids.ctypes.data, ids.nbytes))
    B, T = ids.shape
    borrowed = Borrowed(buffer.address, (B, T), memory.dlpack_device, None)
    assert_array_equal(memory.read(borrowed), ids)


def test_error_of_the_driver_is_told_in_its_words(memory: FakeMemory) -> None:
    with pytest.raises(ExecutionError, match=r"cuMemcpyDtoDAsync_v2 failed: CUDA error 700, the fake says no\."):
        memory.copies.within([(1, 2, 3)])
