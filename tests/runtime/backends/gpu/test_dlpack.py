"""Tensors are lent and borrowed without a copy, and freed once nobody has them. Shown on the CPU, with numpy."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gptexport_runtime import InputError
from gptexport_runtime.backends.gpu import dlpack
from gptexport_runtime.backends.gpu.dlpack import CPU, DeviceLogits, borrow_ids
from gptexport_runtime.backends.output import Output


class Memory:
    """Memory that tells when it is freed."""

    def __init__(self, freed: list[str]) -> None:
        self.data = np.arange(24, dtype=np.float32)
        self.address = self.data.ctypes.data
        self.freed = freed

    def __del__(self) -> None:
        self.freed.append("freed")


def lend() -> tuple[DeviceLogits, list[str]]:
    freed: list[str] = []
    return DeviceLogits(Memory(freed), Output("logits", (2, 3, 4)), (CPU, 0)), freed


def test_logits_are_lent_without_a_copy_and_live_as_long_as_their_taker() -> None:
    logits, freed = lend()
    address = logits._memory.address
    taken = np.from_dlpack(logits)
    del logits
    gc.collect()
    assert freed == []
    assert taken.ctypes.data == address
    assert_array_equal(taken, np.arange(24).reshape(2, 3, 4))
    del taken
    gc.collect()
    assert freed == ["freed"]


def test_capsule_that_nobody_takes_is_freed() -> None:
    logits, freed = lend()
    capsule = logits.__dlpack__()
    del logits
    gc.collect()
    assert freed == []
    del capsule
    gc.collect()
    assert freed == ["freed"]
    assert dlpack._lent == {}


def test_what_cannot_be_done_is_a_buffer_error() -> None:
    """As the standard of array libraries wants it; else a taker that asked for a copy would share the memory."""
    logits, _ = lend()
    with pytest.raises(BufferError, match="without a copy"):
        logits.__dlpack__(copy=True)  # as numpy asks since 2.1
    with pytest.raises(BufferError, match=r"are on device \(1, 0\) and stay there; \(2, 0\) was asked for"):
        logits.__dlpack__(dl_device=(2, 0))
    assert np.from_dlpack(logits).shape == (2, 3, 4)


def test_two_takers_share_the_memory() -> None:
    logits, freed = lend()
    first, second = np.from_dlpack(logits), np.from_dlpack(logits)
    del logits, first
    gc.collect()
    assert (freed, second[1, 2, 3]) == ([], 23)


class Lender:
    """Counts what it has lent out."""

    def __init__(self, ids: Any) -> None:
        self.ids = ids
        self.asked: list[Any] = []

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        return self.ids.__dlpack__()


def test_ids_are_borrowed_where_they_are() -> None:
    ids = np.arange(12).reshape(3, 4)
    lender = Lender(ids)
    borrowed = borrow_ids(lender, 7)
    assert (borrowed.address, borrowed.shape, borrowed.device) == (ids.ctypes.data, (3, 4), (CPU, 0))
    assert lender.asked == [{"stream": 7}]
    part = borrow_ids(ids[1:], None)
    assert part.address == ids[1:].ctypes.data


def test_ids_are_given_back() -> None:
    class Watched(np.ndarray[Any, Any]):
        pass

    ids = np.arange(12).reshape(3, 4).view(Watched)
    freed: list[str] = []
    weakref.finalize(ids, freed.append, "freed")
    borrowed = borrow_ids(ids, None)
    del ids
    gc.collect()
    assert freed == []
    del borrowed
    gc.collect()
    assert freed == ["freed"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((2, 3), dtype=np.int32), "a dtype other than int64"),
        (np.zeros((2, 3)), "a dtype other than int64"),
        (np.zeros(3, dtype=np.int64), r"shape \(3,\); expected 2 dimensions"),
        (np.zeros((0, 3), dtype=np.int64), r"shape \(0, 3\)"),
        (np.zeros((3, 2), dtype=np.int64).T, "not C-contiguous"),
        (np.zeros((3, 4), dtype=np.int64)[:, ::2], "not C-contiguous"),
        (np.zeros((1, 4), dtype=np.int64)[:, ::2], "not C-contiguous"),
    ],
)
def test_other_tensors_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        borrow_ids(ids, None)


def test_used_capsule_is_refused() -> None:
    class Twice:
        capsule = np.zeros((1, 1), dtype=np.int64).__dlpack__()

        def __dlpack__(self) -> Any:
            return self.capsule

    keep = borrow_ids(Twice(), None)
    with pytest.raises(InputError, match="not a fresh"):
        borrow_ids(Twice(), None)
    del keep
