"""Graphs whose inputs and outputs are bound to the GPU's memory compute what they compute anyway, and leave it there.

ONNX Runtime runs for real here, on the memory of a GPU that there is not (fake_driver.py), whose copies are done only
when they are waited for.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.testing import assert_array_equal

import gptexport_runtime
from gptexport_runtime import BackendUnavailableError, CudaOptions, ExecutionError, Session
from gptexport_runtime.artifact import open_artifact
from gptexport_runtime.backends.gpu import captured
from gptexport_runtime.backends.gpu.dlpack import CPU
from gptexport_runtime.backends.ort.device import GRAPH_ID, DeviceBinding, OrtDeviceRunner
from gptexport_runtime.backends.ort.graph import OrtGraph
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import CPU as CPU_PROVIDER
from gptexport_runtime.backends.ort.session import open_session
from gptexport_runtime.contract.heads import LOGITS
from tests.support.fake_driver import FakeMemory, OnTheGpu
from tests.support.on_device import OnDevice
from tests.support.tiny import TINY, V

LOGITS_FILE = TINY / "logits.onnx"


class Watched:
    """A session that remembers how it was run, and may do wrong what a CUDA graph may do wrong."""

    def __init__(self, inner: Any, fault: str | None = None) -> None:
        self.inner, self.fault = inner, fault
        self.runs: list[dict[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        entries = {}
        with contextlib.suppress(RuntimeError):  # none was set
            entries[GRAPH_ID] = options.get_run_config_entry(GRAPH_ID)
        self.runs.append(entries)
        replays = int(entries.get(GRAPH_ID, -1)) > 0
        if replays and self.fault == "fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        if not (replays and self.fault == "repeats"):  # else what was computed before is still there
            self.inner.run_with_iobinding(binding, options)

    @property
    def graph_ids(self) -> list[int]:
        return [int(run[GRAPH_ID]) for run in self.runs]


class Opened:
    """A graph that is bound, and the sessions that were opened for it."""

    def __init__(self, memory: FakeMemory, cuda: CudaOptions | None = None, fault: str | None = None) -> None:
        self.sessions: list[Watched] = []
        self.asked: list[bool] = []
        options = OpenOptions(cuda=cuda or CudaOptions())

        def open_it(captures: bool) -> Any:
            self.asked.append(captures)
            if fault == "refused" and captures:
                raise RuntimeError("This session cannot use the graph capture feature")
            self.sessions.append(Watched(open_session(LOGITS_FILE, CPU_PROVIDER, OpenOptions(threads=1)), fault))
            return self.sessions[-1]

        self.binding = DeviceBinding(memory)
        self.runner: OrtDeviceRunner = self.binding.open(open_it, LOGITS, options, "logits.onnx")
        self.graph = OrtGraph(self.runner, LOGITS_FILE, LOGITS)

    def logits(self, ids: Any) -> Any:
        out = np.empty((*ids.shape, V), np.float32)
        self.graph.run(ids, np.full(len(ids), ids.shape[1]), out)
        return out


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory()


@pytest.fixture(scope="module")
def right() -> Callable[[Any], Any]:
    session = gptexport_runtime.load(LOGITS_FILE, "cpu", threads=1)
    return session.logits


def ids_of(B: int, T: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, V, (B, T))


def test_bound_is_the_same_to_the_bit(memory: FakeMemory, right: Any) -> None:
    """Again and again: as it is, then as what would be a CUDA graph, whose memory stays the same."""
    opened = Opened(memory)
    for seed in range(8):
        for shape in ((1, 1), (3, 7), (2, 16), (1, 16)):
            ids = ids_of(*shape, seed)
            assert_array_equal(opened.logits(ids), right(ids))
    assert opened.asked == [True]
    assert set(opened.sessions[0].graph_ids) == {-1, 1, 2, 3, 4}


def test_shape_that_comes_once_makes_no_graph(memory: FakeMemory) -> None:
    opened = Opened(memory)
    for T in range(1, 17):
        opened.logits(ids_of(1, T))
    assert set(opened.sessions[0].graph_ids) == {-1}


def test_first_replays_are_compared_and_the_others_are_not(memory: FakeMemory) -> None:
    opened = Opened(memory)
    for seed in range(7):
        opened.logits(ids_of(1, 4, seed))
    proved = [1, -1] * (captured.COMPARED + 1)
    assert opened.sessions[0].graph_ids == [-1, *proved, 1, 1, 1]


@pytest.mark.parametrize("fault", ["fails", "repeats"])
def test_graph_that_goes_wrong_is_given_up(fault: str, memory: FakeMemory, right: Any) -> None:
    """In a new session: what a failed capture leaves behind is in the old one."""
    opened = Opened(memory, fault=fault)
    told = "stream is capturing" if fault == "fails" else "a replay is off by"
    with pytest.warns(RuntimeWarning, match=f"logits.onnx goes on without CUDA graphs: .*{told}"):
        for seed in range(6):
            ids = ids_of(2, 5, seed)
            assert_array_equal(opened.logits(ids), right(ids))
    assert opened.asked == [True, False]
    assert set(opened.sessions[1].runs[-1]) == set()


def test_graph_that_was_asked_for_and_goes_wrong_is_an_error(memory: FakeMemory) -> None:
    opened = Opened(memory, CudaOptions(graphs=True), fault="fails")
    opened.logits(ids_of(1, 4))
    with pytest.raises(
        ExecutionError, match=r"without CUDA graphs: .* They were asked for: CudaOptions\(graphs=True\)"
    ):
        opened.logits(ids_of(1, 4))


def test_session_whose_capture_failed_is_freed(memory: FakeMemory) -> None:
    """With its weights and its arena: else they are on the GPU twice from then on."""
    opened = Opened(memory, fault="fails")
    with pytest.warns(RuntimeWarning, match="goes on without CUDA graphs"):
        for seed in range(3):
            opened.logits(ids_of(1, 4, seed))
    assert len(opened.sessions) == 2
    old = weakref.ref(opened.sessions.pop(0))
    gc.collect()
    assert old() is None and opened.logits(ids_of(1, 4)).shape == (1, 4, V)


def test_refusal_of_graphs_is_an_error_where_they_were_asked_for(memory: FakeMemory) -> None:
    assert Opened(memory, fault="refused").asked == [True, False]
    assert Opened(memory, CudaOptions(graphs=False)).asked == [False]
    with pytest.raises(RuntimeError, match="cannot use the graph capture feature"):
        Opened(memory, CudaOptions(graphs=True), fault="refused")


def test_graphs_are_few_and_of_small_shapes(memory: FakeMemory, right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "MOST_GRAPHS", 2)
    opened = Opened(memory, CudaOptions(captured_tokens=20))
    for shape in ((3, 16), (2, 16), (2, 10), (1, 3), (1, 4), (1, 5)):
        for seed in range(4):
            ids = ids_of(*shape, seed)
            assert_array_equal(opened.logits(ids), right(ids))
    assert max(opened.sessions[0].graph_ids) == 2


def test_threads_have_graphs_of_their_own(memory: FakeMemory, right: Any) -> None:
    """ONNX Runtime keeps them by thread: another's would be captured again, over memory of somebody else's."""
    opened, wrong = Opened(memory), []

    def work(first: int) -> None:
        for seed in range(first, first + 6):
            ids = ids_of(1, 4, seed)
            if not np.array_equal(opened.logits(ids), right(ids)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(10 * number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert {1, 2, 3} <= set(opened.sessions[0].graph_ids)


def test_logits_left_there_are_the_callers_own(memory: FakeMemory, right: Any) -> None:
    """Also those of a shape whose graph always writes to the same memory."""
    opened = Opened(memory)
    kept = [opened.graph.run_on_device(ids_of(1, 4, seed)) for seed in range(8)]
    arrays = [np.from_dlpack(logits) for logits in kept]
    assert kept[0].device == (CPU, 0) and repr(kept[0]) == "<DeviceLogits float32 (1, 4, 61) on the CPU>"
    del opened, kept, memory  # the memory lives as long as who took it
    for seed, array in enumerate(arrays):
        assert_array_equal(array, right(ids_of(1, 4, seed)))


def test_torch_takes_logits_without_a_copy(memory: FakeMemory, right: Any) -> None:
    torch = pytest.importorskip("torch")
    logits = Opened(memory).graph.run_on_device(ids_of(2, 5))
    tensor = torch.from_dlpack(logits)
    assert (tensor.data_ptr(), tensor.dtype) == (logits._memory.address, torch.float32)
    assert tuple(tensor.shape) == (2, 5, V)
    assert_array_equal(tensor.numpy(), right(ids_of(2, 5)))


@pytest.fixture
def there() -> Iterator[tuple[Session, OnDevice]]:
    """The session of a bundle on the device."""
    artifact = open_artifact(TINY)
    assert artifact.manifest is not None
    backend = OnDevice(artifact)
    with Session(backend, artifact.manifest.info, artifact) as session:
        yield session, backend


def test_borrowed_ids_are_read_where_they_are(there: tuple[Session, OnDevice], right: Any) -> None:
    """By a call that is not captured; a captured one has its own memory for ids."""
    session, backend = there
    library = backend.memory.library
    ids = OnTheGpu(library, ids_of(2, 5))
    before = dict(library.copied)
    assert_array_equal(np.from_dlpack(session.logits(ids, device_output=True)), right(ids.ids))
    assert library.copied == {**before, "out": before["out"] + ids.ids.nbytes}, "to be checked on the host"
    assert ids.streams == [backend.memory.copies.stream], "the lender was told which stream reads"
    for seed in (1, 2, 3, 4):
        ids = OnTheGpu(library, ids_of(2, 5, seed))
        assert_array_equal(np.from_dlpack(session.logits(ids, device_output=True)), right(ids.ids))
        assert_array_equal(session.last_logits(ids), session.last_logits(ids.ids))


def test_borrowed_ids_that_are_not_aligned_are_copied_on_the_device(
    there: tuple[Session, OnDevice], right: Any
) -> None:
    session, backend = there
    ids = OnTheGpu(backend.memory.library, ids_of(2, 5), offset=8)
    before = backend.memory.library.copied["within"]
    assert_array_equal(np.from_dlpack(session.logits(ids, device_output=True)), right(ids.ids))
    assert backend.memory.library.copied["within"] - before == ids.ids.nbytes


def test_a_captured_graph_keeps_no_tensor_of_its_lender(there: tuple[Session, OnDevice]) -> None:
    session, backend = there
    lent = []
    for seed in range(5):
        ids = OnTheGpu(backend.memory.library, ids_of(1, 3, seed))
        lent.append(weakref.ref(ids.ids))
        session.logits(ids, device_output=True)
    del ids
    gc.collect()
    assert session.captured_graphs == 1 and [ref() for ref in lent] == [None] * 5


def test_failure_says_where_and_at_which_shape(memory: FakeMemory) -> None:
    opened = Opened(memory)
    with pytest.raises(ExecutionError, match=r"logits\.onnx failed on cpu at B=1, T=17: "):
        opened.logits(ids_of(1, 17))


def test_one_output_comes_to_the_host_and_no_more(memory: FakeMemory) -> None:
    opened = Opened(memory)
    before = dict(memory.library.copied)
    opened.logits(ids_of(3, 7))
    assert memory.library.copied["out"] - before["out"] == 4 * 3 * 7 * V
    assert memory.library.copied["in"] - before["in"] == 8 * 3 * 7
    opened.graph.run_on_device(ids_of(3, 8))
    assert memory.library.copied["out"] - before["out"] == 4 * 3 * 7 * V


def test_old_onnx_runtime_captures_nothing(memory: FakeMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GatherND would repeat what lay on the stack when it was captured."""
    for version, captures in (("1.30.2", False), ("1.31.0", True), ("2.0.0", True)):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        assert Opened(memory).asked == [captures]
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.2")
    with pytest.raises(BackendUnavailableError, match=r"need onnxruntime-gpu 1\.31 or newer; 1\.30\.2 is"):
        Opened(memory, CudaOptions(graphs=True))
