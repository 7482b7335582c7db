"""An engine runs as any session: shown with a fake GPU."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gptexport_runtime import ContextLengthError, ExecutionError, InputError
from tests.support.fake_driver import OnTheGpu
from tests.support.fake_engine import Fake, ids_of
from tests.support.fake_tensorrt import VOCAB, logits_of


def test_session_says_what_it_is(fake: Fake) -> None:
    with fake.open() as gpt:
        assert (gpt.backend, gpt.device, gpt.threads) == ("tensorrt-rtx", "cuda", 1)
        assert (gpt.config.vocab_size, gpt.config.block_size) == (VOCAB, 32)
        assert gpt.engine is not None
        assert (gpt.engine.dtype, gpt.manifest) == ("float32", None)


def test_same_shape_again_and_again(fake: Fake) -> None:
    """First the context for all shapes, then one of its own, whose work is captured and compared, then replayed."""
    with fake.open() as gpt:
        for seed in range(6):
            ids = ids_of(2, 5, seed)
            assert_array_equal(gpt.logits(ids), logits_of(ids))
        assert (len(fake.engine.contexts), gpt.captured_graphs) == (2, 1)
        assert (len(fake.cuda.graphs), fake.cuda.launches) == (1, 5)


def test_shapes_in_turn_keep_their_graphs_apart(fake: Fake) -> None:
    """Each has memory of its own, which no larger shape moves."""
    shapes = [(1, 1), (2, 5), (1, 8), (4, 32), (2, 5), (3, 17)]
    with fake.open() as gpt:
        for seed in range(6):
            for shape in shapes:
                ids = ids_of(*shape, seed)
                assert_array_equal(gpt.logits(ids), logits_of(ids))
        assert len(fake.cuda.graphs) == 5


def test_lengths_that_come_once_make_no_context(fake: Fake) -> None:
    with fake.open() as gpt:
        for T in range(1, 33):
            gpt.logits(ids_of(1, T))
        assert len(fake.engine.contexts) == 1


def test_work_that_cannot_be_captured_runs_without(fake: Fake) -> None:
    fake.cuda.capturable = False
    message = r"gpt\.engine goes on without CUDA graphs: cuStreamEndCapture failed: CUDA error 901"
    with fake.open() as gpt, pytest.warns(RuntimeWarning, match=message) as warned:
        for seed in range(5):
            ids = ids_of(2, 5, seed)
            assert_array_equal(gpt.logits(ids), logits_of(ids))
    assert len(warned) == 1


def test_logits_that_stay_come_from_a_captured_graph_too(fake: Fake) -> None:
    """And are the caller's own: the next replay does not write there."""
    with fake.open() as gpt:
        kept = [gpt.logits(ids_of(2, 5, seed), device_output=True) for seed in range(6)]
        assert fake.cuda.launches == 5
        for seed, logits in enumerate(kept):
            logits.device = (1, 0)  # it is host memory really, so numpy may look
            assert_array_equal(np.from_dlpack(logits), logits_of(ids_of(2, 5, seed)))


def test_profile_is_the_one_with_the_least_to_spare(fake: Fake) -> None:
    with fake.open() as gpt:
        for shape in ((2, 8), (3, 8), (1, 9)):
            gpt.logits(ids_of(*shape))
    assert fake.engine.profiles_used == [0, 1, 1]


def test_shape_beyond_every_profile_names_them(fake: Fake) -> None:
    with fake.open() as gpt:
        with pytest.raises(InputError, match=r"B=5, T=3; this engine takes B 1 to 2 and T 1 to 8; or B 1 to 4 and T 1"):
            gpt.logits(ids_of(5, 3))
        with pytest.raises(ContextLengthError):
            gpt.logits(ids_of(1, 33))
        with pytest.raises(InputError, match=r"ids\[0\]\[1\] is 5"):
            gpt.logits([[0, 5]])


def test_threads_take_turns(fake: Fake) -> None:
    wrong: list[int] = []
    together = threading.Barrier(4)

    def work(seed: int) -> None:
        together.wait()
        for step in range(30):
            ids = ids_of(1 + step % 3, 1 + (seed + step) % 7, seed)
            if not np.array_equal(gpt.logits(ids), logits_of(ids)):
                wrong.append(step)

    with fake.open() as gpt:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_everything_is_freed(fake: Fake) -> None:
    gpt = fake.open()
    for _ in range(4):
        gpt.logits(ids_of(2, 5))
    thread = threading.Thread(target=lambda: gpt.logits(ids_of(1, 2)))
    thread.start()
    thread.join()
    device = gpt.logits(ids_of(1, 2), device_output=True)
    assert fake.cuda.blocks
    gpt.close()
    del device
    gc.collect()
    assert (fake.cuda.blocks, fake.cuda.pinned, fake.cuda.streams, fake.cuda.graphs) == ({}, {}, {}, {})


def test_ragged_rows_and_last_logits(fake: Fake) -> None:
    with fake.open() as gpt:
        assert_array_equal(gpt.last_logits([[1, 2, 3], [4]]), [logits_of(np.array([[6]]))[0, 0], [40, 41, 42, 43, 44]])


def test_refusal_by_tensorrt_is_an_error(fake: Fake) -> None:
    fake.engine.works = False
    with fake.open() as gpt, pytest.raises(ExecutionError, match=r"failed at B=2, T=5: TensorRT refuses the run"):
        gpt.logits(ids_of(2, 5))


def test_full_memory_is_an_error_that_says_so(fake: Fake) -> None:
    fake.cuda.total = 4096
    with fake.open() as gpt:
        gpt.logits(ids_of(1, 1))
        with pytest.raises(ExecutionError, match=r"the GPU's memory is full: 0 MB are wanted, 0 of 0 are free"):
            gpt.logits(ids_of(4, 32))
        gpt.logits(ids_of(1, 1))  # and the session goes on


def test_logits_stay_on_the_device(fake: Fake) -> None:
    with fake.open() as gpt:
        first, second = (gpt.logits(ids_of(2, 3, seed), device_output=True) for seed in (1, 2))
        assert (first.shape, first.__dlpack_device__()) == ((2, 3, VOCAB), (2, 0))
        first.device = second.device = (1, 0)  # it is host memory really, so numpy may look
        assert_array_equal(np.from_dlpack(first), logits_of(ids_of(2, 3, 1)))
        assert_array_equal(np.from_dlpack(second), logits_of(ids_of(2, 3, 2)))


def test_ids_on_the_device_are_read_where_they_are(fake: Fake) -> None:
    ids = OnTheGpu(fake.cuda, ids_of(2, 3))
    with fake.open() as gpt:
        logits = gpt.logits(ids, device_output=True)
        logits.device = (1, 0)
        assert_array_equal(np.from_dlpack(logits), logits_of(ids.ids))
    assert ids.streams == [fake.cuda.first_stream]  # the lender was told which stream reads
    assert fake.engine.contexts[0].addresses["input_ids"] == ids.ids.ctypes.data


def test_ids_that_are_not_aligned_are_copied_first(fake: Fake) -> None:
    """As those of `x[1:]`: TensorRT demands addresses of 256 bytes."""
    ids = OnTheGpu(fake.cuda, ids_of(2, 3), offset=8)
    with fake.open() as gpt:
        logits = gpt.logits(ids, device_output=True)
        logits.device = (1, 0)
        assert_array_equal(np.from_dlpack(logits), logits_of(ids.ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[0, 7]]), r"ids\[0\]\[1\] is 7"),
        (np.array([[0, 1]], dtype=np.int32), "a dtype other than int64"),
        (np.array([0, 1]), r"ids has shape \(2,\)"),
    ],
)
def test_ids_on_the_device_are_checked_like_any(ids: Any, message: str, fake: Fake) -> None:
    with fake.open() as gpt, pytest.raises(InputError, match=message):
        gpt.logits(OnTheGpu(fake.cuda, ids), device_output=True)
