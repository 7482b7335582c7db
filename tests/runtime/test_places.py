"""Memory of a GPU: what goes in and out arrives whole, what was given back is used again, and none is held for ever.

Shown with a driver that works in the host's memory, and only when somebody waits for it.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gptexport_runtime import BackendUnavailableError, ExecutionError
from gptexport_runtime.backends.gpu import driver
from gptexport_runtime.backends.gpu import memory as places
from gptexport_runtime.backends.gpu.driver import Driver, load_driver
from gptexport_runtime.backends.gpu.memory import TURNS, HostPlace
from tests.support.fake_driver import FakeLibrary, FakePlace

PAGE = 1024


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> FakePlace:
    monkeypatch.setattr(places, "PINNED", PAGE)
    return FakePlace()


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 3])
def test_what_goes_in_comes_out(size: int, place: FakePlace) -> None:
    """Through two pinned buffers in turn, of which one is emptied while the device fills the other."""
    for here in (place, HostPlace()):
        data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
        block, other = here.allocate(size), here.allocate(size, zeroed=True)
        here.upload(block.address, data)
        out = np.empty_like(data)
        here.download(other.address, out)
        assert not out.any()
        here.copy([(other.address, block.address, size)])
        here.download(other.address, out)
        assert_array_equal(out, data)


def test_pinned_memory_is_two_buffers_whatever_is_copied(place: FakePlace) -> None:
    data = np.arange(10 * PAGE, dtype=np.uint8)
    for _ in range(3):
        block = place.allocate(data.nbytes)
        place.upload(block.address, data)
        place.download(block.address, data)
    assert [len(memory) for memory in place.library.pinned.values()] == [PAGE, PAGE]


def test_memory_that_was_given_back_is_used_again_once_nobody_reads_it(place: FakePlace) -> None:
    block = place.allocate(100 * PAGE)
    address = block.address
    del block
    assert len(place.library.blocks) == 1  # not freed: the next call wants as much
    waits = place.library.waits_for_all
    again = place.allocate(90 * PAGE)
    assert again.address == address
    assert place.library.waits_for_all == waits + 1  # work that its taker had queued may still read it
    third = place.allocate(90 * PAGE)
    assert third.address != address


def test_large_memory_is_not_held_for_small_calls(place: FakePlace) -> None:
    del_me = place.allocate(1000 * PAGE)
    del del_me
    for _ in range(places.PATIENCE):
        small = place.allocate(PAGE)
        del small
    assert [len(block) for block in place.library.blocks.values()] == [PAGE]


def test_few_blocks_wait_for_another_use(place: FakePlace) -> None:
    blocks = [place.allocate(10**n) for n in range(2, 7)]
    blocks.clear()
    assert len(place.library.blocks) == places.KEPT


def test_what_waits_for_another_use_makes_room(place: FakePlace) -> None:
    place.library.total = 10 * PAGE
    small = place.allocate(2 * PAGE)
    del small
    place.allocate(9 * PAGE)  # beside the 2 that wait there is no room
    with pytest.raises(ExecutionError, match=r"memory is full: 0 MB are wanted, 0 of 0 are free\. Smaller batches"):
        place.allocate(11 * PAGE)


def test_nothing_is_freed_while_another_thread_has_its_turn(place: FakePlace) -> None:
    """It may be capturing, which any freeing ends."""
    blocks = [place.allocate(10**n) for n in range(2, 7)]
    taken, let_go = threading.Event(), threading.Event()

    def capture() -> None:
        with TURNS:
            taken.set()
            let_go.wait()

    thread = threading.Thread(target=capture)
    thread.start()
    taken.wait()
    blocks.clear()
    assert len(place.library.blocks) == 5
    let_go.set()
    thread.join()
    place.allocate(1 << 20)
    held = place.allocate(1 << 20)
    del held
    assert len(place.library.blocks) <= places.KEPT + 1


def test_everything_is_freed_with_the_last_who_holds_it() -> None:
    library = FakeLibrary()
    place = FakePlace(library)
    block, other = place.allocate(100), place.allocate(200)
    del other, place
    assert library.streams and block.address in library.blocks
    del block
    assert (library.blocks, library.pinned, library.streams, library.contexts) == ({}, {}, {}, 0)


def test_error_of_the_driver_is_told_in_its_words(place: FakePlace) -> None:
    with pytest.raises(ExecutionError, match=r"cuMemcpyDtoDAsync_v2 failed: CUDA error 700, the fake says no\."):
        place.copy([(1, 2, 3)])


def test_without_a_gpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "open_driver", lambda: (None, "there is no NVIDIA driver: none."))
    with pytest.raises(BackendUnavailableError, match="there is no NVIDIA driver: none"):
        load_driver()


def test_gpu_that_gives_no_context_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setattr(driver, "open_driver", lambda: (library, None))
    assert isinstance(load_driver(), Driver)
    monkeypatch.setattr(FakeLibrary, "_cuDevicePrimaryCtxRetain", lambda self, context, device: 2)
    monkeypatch.setattr(driver, "open_driver", lambda: (FakeLibrary(), None))
    with pytest.raises(BackendUnavailableError, match=r"gives no context on its GPU: cuDevicePrimaryCtxRetain failed"):
        load_driver()
