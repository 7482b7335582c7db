"""Graphs whose inputs and outputs are bound to a place compute what they compute anyway, and leave it there.

ONNX Runtime runs for real here: on the host's memory, and on that of a GPU that there is not (fake_driver.py), whose
copies are done only when they are waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gptexport_runtime
from gptexport_runtime import CudaOptions, ExecutionError, InputError, Session
from gptexport_runtime.backends.gpu.dlpack import CPU, borrow_ids
from gptexport_runtime.backends.gpu.memory import HostPlace, Place
from gptexport_runtime.backends.ort import bound
from gptexport_runtime.backends.ort import bound_graph as ort_cuda
from gptexport_runtime.backends.ort.bound import Bound, Call
from gptexport_runtime.backends.ort.bound_graph import BoundGraph
from gptexport_runtime.backends.ort.cuda_options import GRAPH_ID, SHRINK
from gptexport_runtime.backends.ort.graph import open_session
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS
from tests.support.fake_driver import FakePlace

LOGITS_FILE = Path(__file__).parent / "data" / "tiny" / "logits.onnx"
V, BLOCK_SIZE = 61, 16
SMALL = CudaOptions()


class Watched:
    """A session that remembers how it was run, and may do wrong what a CUDA graph may do wrong."""

    def __init__(self, inner: Any, fault: str | None = None) -> None:
        self.inner, self.fault = inner, fault
        self.runs: list[dict[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        entries = {}
        for key in (GRAPH_ID, SHRINK):
            try:
                entries[key] = options.get_run_config_entry(key)
            except RuntimeError:  # none was set
                continue
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

    def __init__(self, place: Place, options: CudaOptions = SMALL, fault: str | None = None) -> None:
        self.sessions: list[Watched] = []
        self.asked: list[bool] = []

        def open_it(graphs: bool) -> Any:
            self.asked.append(graphs)
            if fault == "refused" and graphs:
                raise RuntimeError("This session cannot use the graph capture feature")
            self.sessions.append(Watched(open_session(LOGITS_FILE, "cpu", 1), fault))
            return self.sessions[-1]

        self.bound = Bound(open_it, place, options, graphs=True, what="logits.onnx")
        self.graph = BoundGraph(self.bound, LOGITS_FILE, "logits", 1)

    def logits(self, ids: Any) -> Any:
        out = np.empty((*ids.shape, V), np.float32)
        self.graph.run(ids, out)
        return out


@pytest.fixture(params=["host", "device"])
def place(request: pytest.FixtureRequest) -> Place:
    return HostPlace() if request.param == "host" else FakePlace()


@pytest.fixture(scope="module")
def right() -> Callable[[Any], Any]:
    session = gptexport_runtime.load(LOGITS_FILE, "cpu", threads=1)
    return session.logits


def ids_of(B: int, T: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, V, (B, T))


def test_bound_is_the_same_to_the_bit(place: Place, right: Any) -> None:
    """Again and again: as it is, then as what would be a CUDA graph, whose memory stays the same."""
    opened = Opened(place)
    for seed in range(8):
        for shape in ((1, 1), (3, 7), (2, 16), (1, 16)):
            ids = ids_of(*shape, seed)
            assert_array_equal(opened.logits(ids), right(ids))
    assert opened.asked == [True]
    assert set(opened.sessions[0].graph_ids) == {-1, 1, 2, 3, 4}


def test_shape_that_comes_once_makes_no_graph(place: Place) -> None:
    opened = Opened(place)
    for T in range(1, 17):
        opened.logits(ids_of(1, T))
    assert set(opened.sessions[0].graph_ids) == {-1}


def test_first_replays_are_compared_and_the_others_are_not(place: Place) -> None:
    opened = Opened(place)
    for seed in range(7):
        opened.logits(ids_of(1, 4, seed))
    proved = [1, -1] * (bound.PROOFS + 1)
    assert opened.sessions[0].graph_ids == [-1, *proved, 1, 1, 1]


@pytest.mark.parametrize("fault", ["fails", "repeats"])
def test_graph_that_goes_wrong_is_given_up(fault: str, place: Place, right: Any) -> None:
    """In a new session: what a failed capture leaves behind is in the old one."""
    opened = Opened(place, fault=fault)
    told = "stream is capturing" if fault == "fails" else "a replay is off by"
    with pytest.warns(RuntimeWarning, match=f"logits.onnx goes on without CUDA graphs: .*{told}"):
        for seed in range(6):
            ids = ids_of(2, 5, seed)
            assert_array_equal(opened.logits(ids), right(ids))
    assert opened.asked == [True, False]
    assert set(opened.sessions[1].runs[-1]) == set()


def test_graph_that_was_asked_for_and_goes_wrong_is_an_error(place: Place) -> None:
    opened = Opened(place, CudaOptions(graphs=True), fault="fails")
    opened.logits(ids_of(1, 4))
    with pytest.raises(
        ExecutionError, match=r"without CUDA graphs: .* They were asked for: CudaOptions\(graphs=True\)"
    ):
        opened.logits(ids_of(1, 4))


def test_refusal_of_graphs_is_an_error_where_they_were_asked_for(place: Place) -> None:
    assert Opened(place, fault="refused").asked == [True, False]
    assert Opened(place, CudaOptions(graphs=False)).asked == [False]
    with pytest.raises(RuntimeError, match="cannot use the graph capture feature"):
        Opened(place, CudaOptions(graphs=True), fault="refused")


def test_graphs_are_few_and_of_small_shapes(place: Place, right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "MOST_GRAPHS", 2)
    monkeypatch.setattr(bound, "CAPTURED_TOKENS", 20)
    opened = Opened(place)
    for shape in ((3, 16), (2, 16), (2, 10), (1, 3), (1, 4), (1, 5)):
        for seed in range(4):
            ids = ids_of(*shape, seed)
            assert_array_equal(opened.logits(ids), right(ids))
    assert max(opened.sessions[0].graph_ids) == 2


def test_threads_have_graphs_of_their_own(place: Place, right: Any) -> None:
    """ONNX Runtime keeps them by thread: another's would be captured again, over memory of somebody else's."""
    opened, wrong = Opened(place), []

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


def test_logits_left_there_are_the_callers_own(place: Place, right: Any) -> None:
    """Also those of a shape whose graph always writes to the same memory."""
    opened = Opened(place)
    session = Session(opened.graph, opened.graph.info, None)
    kept = [session.logits(ids_of(1, 4, seed), device_output=True) for seed in range(8)]
    arrays = [np.from_dlpack(logits) for logits in kept]
    assert kept[0].device == (CPU, 0) and repr(kept[0]) == "<DeviceLogits float32 (1, 4, 61) on the CPU>"
    del opened, session, kept  # the memory lives as long as who took it
    for seed, array in enumerate(arrays):
        assert_array_equal(array, right(ids_of(1, 4, seed)))


def test_torch_takes_logits_without_a_copy(place: Place, right: Any) -> None:
    torch = pytest.importorskip("torch")
    opened = Opened(place)
    session = Session(opened.graph, opened.graph.info, None)
    logits = session.logits(torch.from_numpy(ids_of(2, 5)), device_output=True)
    tensor = torch.from_dlpack(logits)
    assert (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape)) == (logits._buffer.address, torch.float32, (2, 5, V))
    assert_array_equal(tensor.numpy(), right(ids_of(2, 5)))


def test_borrowed_ids_are_read_where_they_are(right: Any) -> None:
    """Of the host: the graph is bound to the lender's memory, not to a copy of it."""
    opened = Opened(HostPlace())
    ids = ids_of(2, 5)
    borrowed = borrow_ids(ids, None)
    assert_array_equal(opened.graph.read_ids(borrowed), ids)
    for seed in (1, 2, 3, 4):  # bound in place, then copied to where a graph reads them
        ids[:] = ids_of(2, 5, seed)
        block = opened.graph.run_on_device(borrowed)
        assert_array_equal(block.as_array((2, 5, V), np.float32), right(ids))


def test_on_the_cpu_logits_are_left_in_the_hosts_memory(right: Any) -> None:
    """One API for every device."""
    with gptexport_runtime.load(LOGITS_FILE, "cpu", threads=1) as session:
        logits = session.logits([[1, 2], [3]], device_output=True)
        assert_array_equal(np.from_dlpack(logits)[1, :1], right([[3]])[0])
        with pytest.raises(InputError, match="out is given with device_output=True"):
            session.logits([[1]], device_output=True, out=np.empty((1, 1, V), np.float32))  # type: ignore[call-overload]


def test_arena_shrinks_when_small_calls_follow_a_large_one(place: Place) -> None:
    opened = Opened(place, CudaOptions(graphs=False, shrink_after=3))
    for B, T in [(4, 16), (4, 16), (1, 16), (1, 16), (2, 16), (1, 16), (1, 16), (1, 16), (1, 16), (1, 16)]:
        opened.logits(ids_of(B, T))
    shrank = [number for number, run in enumerate(opened.sessions[0].runs) if SHRINK in run]
    assert shrank == [7]  # the third in a row of a quarter; then the small is what is usual


def test_arena_under_a_graph_is_left_alone(place: Place) -> None:
    """A graph goes on reading and writing the memory that it was captured with."""
    opened = Opened(place, CudaOptions(shrink_after=1))
    for B, T in [(1, 1), (1, 1), (4, 16), (1, 1), (1, 2), (1, 2)]:
        opened.logits(ids_of(B, T))
    assert not any(SHRINK in run for run in opened.sessions[0].runs)
    never = Opened(place, CudaOptions(graphs=False, shrink_after=None))
    for B, T in [(4, 16), *[(1, 1)] * 20]:
        never.logits(ids_of(B, T))
    assert not any(SHRINK in run for run in never.sessions[0].runs)


def test_failure_says_where_and_at_which_shape(place: Place) -> None:
    opened = Opened(place)
    with pytest.raises(ExecutionError, match=r"logits\.onnx failed on cpu at B=1, T=17: "):
        opened.logits(ids_of(1, 17))


def test_one_output_comes_to_the_host_and_no_more() -> None:
    place = FakePlace()
    opened = Opened(place)
    before = dict(place.library.copied)
    opened.logits(ids_of(3, 7))
    assert place.library.copied["out"] - before["out"] == 4 * 3 * 7 * V
    assert place.library.copied["in"] - before["in"] == 8 * 3 * 7
    opened.graph.run_on_device(ids_of(3, 8))
    assert place.library.copied["out"] - before["out"] == 4 * 3 * 7 * V


def test_options_are_checked_and_told_to_the_provider() -> None:
    assert CudaOptions().of_provider() == {
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "0",
    }
    told = CudaOptions(tf32=True, memory_limit=1 << 30).of_provider(graphs=True)
    assert (told["use_tf32"], told["gpu_mem_limit"], told["enable_cuda_graph"]) == ("1", str(1 << 30), "1")
    for wrong in ({"memory_limit": 0}, {"shrink_after": True}, {"memory_limit": 1.5}):
        with pytest.raises(InputError, match=r"expected an integer of 1 or more, or None"):
            CudaOptions(**wrong)


def test_old_onnx_runtime_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GatherND would repeat what lay on the stack when it was captured."""
    import onnxruntime

    asked: list[bool] = []

    def open_it(path: Path, device: str, threads: int, *, plan: bool, cuda: CudaOptions, graphs: bool) -> Any:
        asked.append(graphs)
        return open_session(path, device, threads)

    monkeypatch.setattr(ort_cuda, "open_session", open_it)
    for version, graphs in (("1.30.2", False), ("1.31.0", True), ("2.0.0", True)):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        ort_cuda.open_bound_graph(LOGITS_FILE, HostPlace(), threads=1, cuda=CudaOptions())
        assert asked.pop() is graphs
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.2")
    with pytest.raises(
        gptexport_runtime.BackendUnavailableError, match=r"need onnxruntime-gpu 1\.31 or newer; 1\.30\.2 is"
    ):
        ort_cuda.open_bound_graph(LOGITS_FILE, HostPlace(), threads=1, cuda=CudaOptions(graphs=True))


def test_call_knows_its_sizes() -> None:
    call = Call({INPUT_IDS: ids_of(3, 7)}, LOGITS, (3, 7, V))
    assert (call.tokens, call.size, call.feed_size) == (21, 4 * 21 * V, 8 * 21)
