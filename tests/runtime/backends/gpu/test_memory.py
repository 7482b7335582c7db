"""Memory of a GPU: what was given back is used again once nobody reads it, and none is held for ever.

Shown with a driver that works in the host's memory, and only when somebody waits for it.
"""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gptexport_runtime import ExecutionError
from gptexport_runtime.backends.gpu.driver import Driver
from gptexport_runtime.backends.gpu.memory import ALIGNMENT, KEPT, DeviceMemory
from gptexport_runtime.backends.gpu.streams import Stream
from gptexport_runtime.backends.gpu.turns import TURNS
from tests.support.fake_driver import FakeLibrary, FakeMemory

PAGE = 1024


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory()


def test_zeroed_memory_is_zero_and_aligned(memory: FakeMemory) -> None:
    buffer = memory.allocate(PAGE)
    memory.copies.upload(buffer.address, np.ones(PAGE, np.uint8))
    del buffer  # so that the next one gets it
    buffer = memory.allocate(PAGE, zeroed=True)
    out = np.ones(PAGE, np.uint8)
    memory.copies.download(buffer.address, out)
    assert_array_equal(out, 0)
    assert buffer.address % ALIGNMENT == 0


def test_memory_that_was_given_back_is_used_again_once_nobody_reads_it(memory: FakeMemory) -> None:
    buffer = memory.allocate(100 * PAGE)
    address = buffer.address
    del buffer
    assert len(memory.library.blocks) == 1  # not freed: the next call wants as much
    waits = memory.library.waits_for_all
    again = memory.allocate(90 * PAGE)
    assert again.address == address
    assert memory.library.waits_for_all == waits + 1  # work that its taker had queued may still read it
    third = memory.allocate(90 * PAGE)
    assert third.address != address


def test_large_memory_is_not_taken_for_small_calls(memory: FakeMemory) -> None:
    large = memory.allocate(100 * PAGE)
    address = large.address
    del large
    assert memory.allocate(PAGE).address != address


def test_few_buffers_wait_for_another_use(memory: FakeMemory) -> None:
    """Those that were given back last: memory stays flat over calls of growing shapes."""
    buffers = [memory.allocate(10**n) for n in range(2, 7)]
    last = {buffer.address for buffer in buffers[-KEPT:]}
    while buffers:
        del buffers[0]
    assert set(memory.library.blocks) == last
    for length in range(1, 500):
        memory.allocate(length * PAGE)
    assert len(memory.library.blocks) <= KEPT


def test_what_waits_for_another_use_makes_room(memory: FakeMemory) -> None:
    memory.library.total = 10 * PAGE
    small = memory.allocate(2 * PAGE)
    del small
    memory.allocate(9 * PAGE)  # beside the 2 that wait there is no room
    with pytest.raises(ExecutionError, match=r"memory is full: 0 MB are wanted, 0 of 0 are free\. Smaller batches"):
        memory.allocate(11 * PAGE)


def test_nothing_is_freed_while_another_thread_has_its_turn(memory: FakeMemory) -> None:
    """It may be capturing, which any freeing ends."""
    buffers = [memory.allocate(10**n) for n in range(2, 7)]
    taken, let_go = threading.Event(), threading.Event()

    def capture() -> None:
        with TURNS:
            taken.set()
            let_go.wait()

    thread = threading.Thread(target=capture)
    thread.start()
    taken.wait()
    buffers.clear()
    assert len(memory.library.blocks) == 5
    let_go.set()
    thread.join()
    kept = memory.allocate(1 << 20)
    assert len(memory.library.blocks) <= KEPT + 1
    del kept


def test_garbage_that_is_collected_during_a_capture_does_not_end_it(memory: FakeMemory) -> None:
    """In the very thread that captures: Python collects when it likes."""
    stream, held = Stream(memory.driver), [memory.allocate(10**n) for n in range(2, 7)]
    address = held[-1].address

    def work() -> None:
        held.clear()
        gc.collect()
        memory.driver.copy(address, address, 1, stream.handle)

    with TURNS:
        graph = stream.capture(work)
        stream.launch(graph)
    assert memory.library.launches == 1
    memory.allocate(1)
    assert len(memory.library.blocks) <= KEPT + 1


def test_everything_is_freed_with_the_last_who_holds_it() -> None:
    library = FakeLibrary()
    memory = FakeMemory(library)
    buffer, other = memory.allocate(100), memory.allocate(200)
    del other, memory
    assert library.streams and buffer.address in library.blocks
    del buffer
    assert (library.blocks, library.pinned, library.streams, library.contexts) == ({}, {}, {}, 0)


def test_everything_is_freed_in_whatever_order_garbage_is_collected() -> None:
    library = FakeLibrary()
    memory = DeviceMemory(Driver(library))
    buffer = memory.allocate(100)
    memory.__dict__["itself"], buffer.__dict__["memory"] = buffer, memory  # a cycle
    del memory, buffer
    gc.collect()
    assert (library.blocks, library.pinned, library.streams, library.contexts) == ({}, {}, {}, 0)
