"""On a GPU: the same logits, left there or brought to the host, from captured graphs or without, and memory given back.

Not run where there is none: `pytest -m gpu tests/runtime`. torch is needed by the tests that name it, by no other.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gptexport_runtime
from gptexport_runtime import CudaOptions, ExecutionError, InputError, Session
from gptexport_runtime.backends.gpu.dlpack import CUDA
from gptexport_runtime.backends.gpu.driver import load_driver
from gptexport_runtime.backends.gpu.memory import DeviceMemory
from tests.support.tiny import TINY

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]
V, BLOCK_SIZE = 61, 16
ATOL = 2e-5  # as on the CPU: TF32 is off
MANY = 4096  # rows whose activations are some 100 MB


@pytest.fixture
def on_gpu() -> Any:
    with gptexport_runtime.load(TINY, "cuda") as session:
        yield session


@pytest.fixture
def torch_cuda() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    return torch


@pytest.fixture
def memory() -> DeviceMemory:
    return DeviceMemory(load_driver())


def ids_of(B: int, T: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, V, (B, T))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 16), (3, 7), (3, 16)])
def test_logits_are_those_of_float64(on_gpu: Session, expected: Any, B: int, T: int) -> None:
    """The first time, the second, which captures, and from the graph."""
    for _ in range(5):
        assert_allclose(on_gpu.logits(expected.ids[:B, :T]), expected.logits[:B, :T], atol=ATOL, rtol=0)


def test_graphs_change_no_bit(expected: Any) -> None:
    with (
        gptexport_runtime.load(TINY, "cuda", cuda=CudaOptions(graphs=None)) as captured,
        gptexport_runtime.load(TINY, "cuda", cuda=CudaOptions(graphs=False)) as plain,
    ):
        for seed in range(8):
            for shape in ((1, 1), (1, 16), (3, 7)):
                ids = ids_of(*shape, seed)
                assert_array_equal(captured.logits(ids), plain.logits(ids))
        assert plain.captured_graphs == 0 < captured.captured_graphs


def test_logits_stay_on_the_gpu(on_gpu: Session, memory: DeviceMemory) -> None:
    kept = [on_gpu.logits(ids_of(2, 9, seed), device_output=True) for seed in range(6)]
    for seed, logits in enumerate(kept):
        assert (logits.shape, logits.device) == ((2, 9, V), (CUDA, 0))
        host = np.empty(logits.shape, np.float32)
        memory.copies.download(logits._memory.address, host)
        assert_array_equal(host, on_gpu.logits(ids_of(2, 9, seed)))


def test_torch_takes_them_without_a_copy(on_gpu: Session, torch_cuda: Any) -> None:
    logits = on_gpu.logits(ids_of(2, 9), device_output=True)
    tensor = torch_cuda.from_dlpack(logits)
    assert tensor.is_cuda and tensor.data_ptr() == logits._memory.address
    address = tensor.data_ptr()
    del logits
    other = torch_cuda.from_dlpack(on_gpu.logits(ids_of(2, 9, 1), device_output=True))
    assert other.data_ptr() != address  # the taker has it still
    assert_array_equal(tensor.cpu().numpy(), on_gpu.logits(ids_of(2, 9)))


def test_memory_is_used_again_after_its_last_reader(on_gpu: Session, torch_cuda: Any) -> None:
    """Work that torch has queued, and not done, reads logits that nobody holds any more."""
    weight = torch_cuda.randn(V, V, device="cuda")
    expected_sums, sums = [], []
    for seed in range(20):
        ids = ids_of(64, 16, seed)
        expected_sums.append((torch_cuda.from_numpy(on_gpu.logits(ids)).cuda() @ weight).sum(dtype=torch_cuda.float64))
    for seed in range(20):
        tensor = torch_cuda.from_dlpack(on_gpu.logits(ids_of(64, 16, seed), device_output=True))
        sums.append((tensor @ weight).sum(dtype=torch_cuda.float64))
        del tensor
    for mine, theirs in zip(sums, expected_sums, strict=True):
        assert float(mine) == pytest.approx(float(theirs), rel=1e-6)


def test_ids_on_the_gpu_are_read_there(on_gpu: Session, torch_cuda: Any) -> None:
    """Also those that a stream of torch's is still computing."""
    stream = torch_cuda.cuda.Stream()
    for seed in range(6):
        ids = ids_of(2, 9, seed)
        with torch_cuda.cuda.stream(stream):
            busy = torch_cuda.randn(2048, 2048, device="cuda")
            for _ in range(20):
                busy = busy @ busy / 2048
            tensor = torch_cuda.from_numpy(ids).cuda() + (busy.sum() * 0).nan_to_num().long()
            logits = torch_cuda.from_dlpack(on_gpu.logits(tensor, device_output=True))
        assert_array_equal(logits.cpu().numpy(), on_gpu.logits(ids))
        assert_array_equal(on_gpu.last_logits(tensor), on_gpu.last_logits(ids))


def test_ids_on_the_gpu_are_checked_like_any(on_gpu: Session, torch_cuda: Any) -> None:
    with pytest.raises(InputError, match=r"ids\[0\]\[1\] is 61"):
        on_gpu.logits(torch_cuda.tensor([[0, 61]], device="cuda"), device_output=True)
    with pytest.raises(InputError, match=r"Convert it: ids\.long\(\)"):
        on_gpu.logits(torch_cuda.tensor([[0, 1]], device="cuda", dtype=torch_cuda.int32), device_output=True)


def test_large_outputs_come_whole(on_gpu: Session) -> None:
    """Through pinned buffers that are smaller than they are."""
    ids = ids_of(MANY, 16)
    logits = on_gpu.logits(ids)
    assert logits.nbytes > 8 << 20
    assert_allclose(logits[-3:], on_gpu.logits(ids[-3:]), atol=ATOL, rtol=0)
    assert_allclose(logits[1234:1235], on_gpu.logits(ids[1234:1235]), atol=ATOL, rtol=0)


def test_threads_take_turns(on_gpu: Session, expected: Any) -> None:
    wrong: list[Any] = []

    def work(first: int) -> None:
        try:
            for step in range(30):
                T = 1 + (first + step) % 16
                logits = on_gpu.logits(expected.ids[:, :T])
                if not np.allclose(logits, expected.logits[:, :T], atol=ATOL, rtol=0):
                    wrong.append((first, step))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_flat_over_calls_of_growing_shapes(memory: DeviceMemory) -> None:
    """ONNX Runtime's arena grows by powers of two; what we allocate is used again or freed."""
    with gptexport_runtime.load(TINY, "cuda") as session:
        session.logits(ids_of(MANY, 16))
        free = memory.free_bytes()
        for rows in range(1, MANY, MANY // 64):
            session.logits(ids_of(rows, 16))
        assert free - memory.free_bytes() < 64 << 20


def test_memory_that_is_not_allowed_is_an_error(expected: Any) -> None:
    with gptexport_runtime.load(TINY, "cuda", cuda=CudaOptions(memory_limit=32 << 20)) as session:
        with pytest.raises(ExecutionError, match=f"failed on cuda at B={MANY}, T=16"):
            session.logits(ids_of(MANY, 16))
        assert_allclose(session.logits(expected.ids), expected.logits, atol=ATOL, rtol=0)  # and the session goes on


def test_tf32_is_off_until_it_is_asked_for(expected: Any) -> None:
    errors = []
    for tf32 in (False, True):
        with gptexport_runtime.load(TINY, "cuda", cuda=CudaOptions(tf32=tf32)) as session:
            errors.append(np.abs(session.logits(expected.ids) - expected.logits).max())
    assert errors[0] < ATOL


def test_session_frees_the_gpu(memory: DeviceMemory) -> None:
    with gptexport_runtime.load(TINY, "cuda") as session:
        session.logits(ids_of(MANY, 16))
        free = memory.free_bytes()
    del session
    assert memory.free_bytes() > free
