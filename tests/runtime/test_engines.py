"""An engine is opened only when everything fits, and then runs as any session: shown with a fake GPU."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gptexport_runtime
import numpy as np
import pytest
from fake_tensorrt import VOCAB, DataType, FakeCuda, FakeEngine, fake_library, logits_of
from gptexport_runtime import (
    ArtifactError,
    BackendUnavailableError,
    ContextLengthError,
    ExecutionError,
    InputError,
    Session,
    trt,
)
from gptexport_runtime.contract import FileEntry
from gptexport_runtime.engine_file import EngineInfo, Profile, TensorInfo, sidecar_path
from gptexport_runtime.gpu import Gpu, why_no_gpu
from numpy.testing import assert_array_equal

VERSION = "1.7.1.116"
SMALL, LARGE = Profile(min=(1, 1), opt=(1, 4), max=(2, 8)), Profile(min=(1, 1), opt=(4, 16), max=(4, 32))


def write_engine(folder: Path, *, header: bytes = b"vtrt", version: str = VERSION, body: bytes = b"plan") -> Path:
    """An engine file that nobody could run, and its right sidecar."""
    path = folder / "gpt.engine"
    data = header + bytes(20) + bytes(int(part) for part in version.split(".")) + body
    path.write_bytes(data)
    write_sidecar(path, version=version)
    return path


def write_sidecar(path: Path, **changes: Any) -> None:
    data = path.read_bytes()
    info = EngineInfo(
        engine=FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        flavour="tensorrt-rtx",
        version=VERSION,
        compute_capabilities=("8.9", "12.0"),
        built_on=None,
        options={"tf32": True, "workspace": 64, "refit": False},
        onnx={"logits.onnx": "0" * 64},
        model={"vocab_size": VOCAB, "block_size": 32},
        dtype="float32",
        inputs=(TensorInfo(name="input_ids", dtype="int64", shape=("B", "T")),),
        outputs=(TensorInfo(name="logits", dtype="float32", shape=("B", "T", VOCAB)),),
        profiles=(SMALL, LARGE),
        activation_bytes=(1000, 2000),
        weight_bytes=4,
    )
    sidecar_path(path).write_text(replace(info, **changes).to_json())


@dataclass
class Fake:
    """A machine with a GPU that there is not."""

    path: Path
    cuda: FakeCuda
    engine: FakeEngine
    monkeypatch: pytest.MonkeyPatch

    def gpu(self, compute_capability: str) -> None:
        gpu = Gpu(name="Fake 4090", compute_capability=compute_capability, driver_cuda="13.0")
        self.monkeypatch.setattr(trt, "find_gpu", lambda: gpu)
        self.monkeypatch.setattr(trt, "why_no_gpu", lambda: None)

    def library(self, engine: FakeEngine | None, version: str = VERSION) -> None:
        self.monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_library(engine, version))

    def open(self) -> Session:
        return gptexport_runtime.load(self.path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, [(p.min, p.opt, p.max) for p in (SMALL, LARGE)])
    fake = Fake(write_engine(tmp_path), cuda, engine, monkeypatch)
    fake.gpu("8.9")
    fake.library(engine)
    monkeypatch.setattr(trt, "import_cudart", lambda: cuda)
    return fake


def ids_of(B: int, T: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, VOCAB, (B, T))


# what is wrong with the files, and what the error says; in the order of the checks


def test_header_is_checked_first(tmp_path: Path) -> None:
    path = write_engine(tmp_path, header=b"GIF8")
    sidecar_path(path).unlink()
    with pytest.raises(ArtifactError, match=r"it begins with b'GIF8'; expected b'ftrt' or b'vtrt'. Build it with"):
        gptexport_runtime.load(path)


def test_engine_without_a_sidecar_is_not_run(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    sidecar_path(path).unlink()
    with pytest.raises(ArtifactError, match=r"has no gpt\.engine\.json beside it"):
        gptexport_runtime.load(path)


def test_corrupt_engine(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(
        ArtifactError, match=r"It is damaged, or this is another engine's sidecar.*gptexport trt BUNDLE"
    ):
        gptexport_runtime.load(path)


def test_truncated_engine(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"has 31 bytes; gpt.engine.json is of an engine of 32. It is truncated"):
        gptexport_runtime.load(path)


def test_sidecar_of_another_engine(tmp_path: Path) -> None:
    path = write_engine(tmp_path, body=b"one!")
    (tmp_path / "other").mkdir()
    other = write_engine(tmp_path / "other", body=b"two!")
    shutil.copy(sidecar_path(other), sidecar_path(path))
    with pytest.raises(ArtifactError, match="or this is another engine's sidecar"):
        gptexport_runtime.load(path)


def test_header_and_sidecar_that_disagree(tmp_path: Path) -> None:
    path = write_engine(tmp_path, version="1.6.0.1")
    write_sidecar(path, version=VERSION)
    with pytest.raises(
        ArtifactError, match=r"tensorrt-rtx 1\.6\.0\.1 built it; gpt\.engine\.json says tensorrt-rtx 1\.7"
    ):
        gptexport_runtime.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "is not the sidecar of an engine"),
        ('{"format": "gptexport-engine", "format_version": 9}', "has format_version 9; this gptexport reads 1"),
        ('{"format": "gptexport-engine", "format_version": 1}', "is damaged"),
    ],
)
def test_damaged_sidecar(text: str, message: str, tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    sidecar_path(path).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        gptexport_runtime.load(path)


@pytest.mark.parametrize("change", [{"profiles": []}, {"profiles": [{"min": [2, 1], "opt": [1, 1], "max": [4, 4]}]}])
def test_impossible_sidecar(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    data = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps({**data, **change}))
    with pytest.raises(ArtifactError, match="is damaged"):
        gptexport_runtime.load(path)


def test_library_of_another_version(fake: Fake) -> None:
    fake.library(fake.engine, "1.8.0.1")
    with pytest.raises(BackendUnavailableError) as caught:
        fake.open()
    assert f"was built by tensorrt-rtx {VERSION}; 1.8.0.1 is installed" in str(caught.value)
    command = "gptexport trt BUNDLE -o gpt.engine --backend tensorrt-rtx --min 1x1 --min 1x1 --opt 1x4 --opt 4x16"
    assert f"{command} --max 2x8 --max 4x32 --compute-capability 8.9 --compute-capability 12.0" in str(caught.value)
    assert str(caught.value).endswith("--tf32 --workspace 64")


def test_library_that_is_missing(fake: Fake) -> None:
    fake.monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailableError, match=r"needs tensorrt-rtx 1\.7.*pip install gptexport-runtime\[rtx\]"):
        fake.open()


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU here")
def test_no_gpu_is_found_before_the_library_is_called(fake: Fake) -> None:
    """A runtime without a GPU ends the process, so it may not even be made."""

    def crash(_logger: Any) -> None:
        raise AssertionError("the library was called")

    fake.monkeypatch.setattr(sys.modules["tensorrt_rtx"], "Runtime", crash)
    fake.monkeypatch.setattr(trt, "why_no_gpu", why_no_gpu)
    with pytest.raises(
        BackendUnavailableError, match=r"gpt\.engine is a TensorRT engine, which needs a GPU, and there is"
    ):
        fake.open()


def test_other_gpu(fake: Fake) -> None:
    fake.gpu("9.0")
    with pytest.raises(
        BackendUnavailableError, match=r"capability 8\.9, 12\.0; this one is Fake 4090, 9\.0.*trt BUNDLE"
    ):
        fake.open()


def test_hardware_compatible_engine_runs_on_other_gpus(fake: Fake) -> None:
    write_sidecar(fake.path, options={"hardware_compatible": True})
    for newer in ("9.0", "10.0"):
        fake.gpu(newer)
        fake.open().close()
    fake.gpu("7.5")
    with pytest.raises(BackendUnavailableError):
        fake.open()


def test_cpu_is_refused(fake: Fake) -> None:
    with pytest.raises(InputError, match="which runs on CUDA only"):
        gptexport_runtime.load(fake.path, "cpu")


def test_engine_that_does_not_deserialize(fake: Fake) -> None:
    fake.library(None)
    with pytest.raises(ArtifactError, match="does not deserialize"):
        fake.open()


INTERFACES = {
    "name": (
        lambda engine: engine.names.__setitem__(0, "tokens"),
        "it has ['logits', 'tokens']; expected ['input_ids'",
    ),
    "extra": (lambda engine: engine.names.append("mask"), "it has ['input_ids', 'logits', 'mask']"),
    "ids": (lambda engine: engine.dtypes.__setitem__("input_ids", DataType.INT32), "INT32, FLOAT"),
    "logits": (lambda engine: engine.dtypes.__setitem__("logits", DataType.HALF), "INT64, HALF"),
    "profile": (lambda engine: engine.profiles.__setitem__(1, ((1, 1), (4, 16), (4, 64))), "(4, 64); expected"),
    "count": (lambda engine: engine.profiles.pop(), "is not what its sidecar says"),
}


@pytest.mark.parametrize(("change", "message"), INTERFACES.values(), ids=INTERFACES)
def test_engine_is_held_against_its_sidecar(change: Any, message: str, fake: Fake) -> None:
    change(fake.engine)
    with pytest.raises(ArtifactError) as caught:
        fake.open()
    assert message in str(caught.value)
    assert "gptexport trt BUNDLE" in str(caught.value)


# running


def test_session_says_what_it_is(fake: Fake) -> None:
    with fake.open() as gpt:
        assert (gpt.backend, gpt.device, gpt.threads) == ("tensorrt-rtx", "cuda", 1)
        assert (gpt.config.vocab_size, gpt.config.block_size) == (VOCAB, 32)
        assert gpt.engine is not None
        assert (gpt.engine.dtype, gpt.manifest) == ("float32", None)


def test_same_shape_again_and_again(fake: Fake) -> None:
    """First the roaming context, then one of its own, then a captured graph."""
    with fake.open() as gpt:
        for seed in range(5):
            ids = ids_of(2, 5, seed)
            assert_array_equal(gpt.logits(ids), logits_of(ids))
        assert (len(fake.engine.contexts), fake.cuda.graphs, fake.cuda.launches) == (2, 1, 3)


def test_shapes_in_turn_keep_their_graphs_apart(fake: Fake) -> None:
    """Larger shapes move the buffers that graphs were captured with."""
    shapes = [(1, 1), (2, 5), (1, 8), (4, 32), (2, 5), (3, 17)]
    with fake.open() as gpt:
        for seed in range(6):
            for shape in shapes:
                ids = ids_of(*shape, seed)
                assert_array_equal(gpt.logits(ids), logits_of(ids))
        assert fake.cuda.graphs == 5


def test_graph_does_not_outlive_the_memory_it_was_captured_with(fake: Fake) -> None:
    """A larger shape moves the buffers; the small one's graph has their old addresses."""
    with fake.open() as gpt:
        for shape in ((2, 5), (2, 5), (2, 5), (4, 32), (2, 5), (2, 5), (2, 5)):
            ids = ids_of(*shape)
            assert_array_equal(gpt.logits(ids), logits_of(ids))
        assert (fake.cuda.graphs, fake.cuda.launches) == (1, 3)


def test_shape_that_is_used_keeps_its_graph(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "CAPTURED_SHAPES", 2)
    with fake.open() as gpt:
        gpt.logits(ids_of(1, 8))  # the largest first: nothing moves later
        for T in (1, 2):
            for _ in range(3):
                gpt.logits(ids_of(1, T))
        gpt.logits(ids_of(1, 1))  # so that 2 is the one used longest ago
        for _ in range(2):
            gpt.logits(ids_of(1, 3))
        launches = fake.cuda.launches
        gpt.logits(ids_of(1, 1))
        assert fake.cuda.launches == launches + 1


def test_graphs_are_bounded(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "CAPTURED_SHAPES", 3)
    with fake.open() as gpt:
        for T in range(32, 0, -1):
            for seed in range(3):
                ids = ids_of(1, T, seed)
                assert_array_equal(gpt.logits(ids), logits_of(ids))
        assert fake.cuda.graphs == 3


def test_lengths_that_come_once_make_no_context(fake: Fake) -> None:
    with fake.open() as gpt:
        for T in range(1, 33):
            gpt.logits(ids_of(1, T))
        assert len(fake.engine.contexts) == 1


def test_work_that_cannot_be_captured_runs_without(fake: Fake) -> None:
    fake.cuda.capturable = False
    with fake.open() as gpt, pytest.warns(RuntimeWarning, match=r"no CUDA graph for B,T = \(2, 5\).*900") as warned:
        for seed in range(5):
            ids = ids_of(2, 5, seed)
            assert_array_equal(gpt.logits(ids), logits_of(ids))
    assert len(warned) == 1


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


def test_threads_have_contexts_of_their_own(fake: Fake) -> None:
    wrong: list[int] = []
    together = threading.Barrier(4)  # else one may end before another begins, and lend it its name

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
    assert len({context.thread for context in fake.engine.contexts}) == 4


def test_everything_is_freed(fake: Fake) -> None:
    gpt = fake.open()
    for _ in range(4):
        gpt.logits(ids_of(2, 5))
    thread = threading.Thread(target=lambda: gpt.logits(ids_of(1, 2)))
    thread.start()
    thread.join()
    device = gpt.logits_on_device(ids_of(1, 2))
    assert fake.cuda.blocks
    gpt.close()
    del device
    gc.collect()
    assert (fake.cuda.blocks, fake.cuda.streams, fake.cuda.graphs) == ({}, {}, 0)


def test_ragged_rows_and_last_logits(fake: Fake) -> None:
    with fake.open() as gpt:
        assert_array_equal(gpt.last_logits([[1, 2, 3], [4]]), [logits_of(np.array([[6]]))[0, 0], [40, 41, 42, 43, 44]])


def test_refusal_by_tensorrt_is_an_error(fake: Fake) -> None:
    fake.engine.works = False
    with fake.open() as gpt, pytest.raises(ExecutionError, match=r"failed at B=2, T=5: TensorRT refuses the run"):
        gpt.logits(ids_of(2, 5))


def test_full_memory_is_an_error_that_says_so(fake: Fake) -> None:
    fake.cuda.memory = 1100
    with fake.open() as gpt:
        gpt.logits(ids_of(1, 1))
        with pytest.raises(ExecutionError, match=r"cudaMalloc failed: CUDA error 2. The GPU's memory is full"):
            gpt.logits(ids_of(2, 8))
        gpt.logits(ids_of(1, 1))  # and the session goes on


def test_logits_stay_on_the_device(fake: Fake) -> None:
    with fake.open() as gpt:
        first, second = (gpt.logits_on_device(ids_of(2, 3, seed)) for seed in (1, 2))
        assert (first.shape, first.__dlpack_device__()) == ((2, 3, VOCAB), (2, 0))
        first.device = second.device = (1, 0)  # it is host memory really, so numpy may look
        assert_array_equal(np.from_dlpack(first), logits_of(ids_of(2, 3, 1)))
        assert_array_equal(np.from_dlpack(second), logits_of(ids_of(2, 3, 2)))


class OnTheGpu:
    """A tensor of another library."""

    def __init__(self, cuda: FakeCuda, ids: np.ndarray[Any, Any]) -> None:
        self.ids = np.ascontiguousarray(ids)
        cuda.blocks[self.ids.ctypes.data] = bytearray(self.ids.nbytes)  # memory that CUDA knows
        self.streams: list[Any] = []

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.ids.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def test_ids_on_the_device_are_read_where_they_are(fake: Fake) -> None:
    ids = OnTheGpu(fake.cuda, ids_of(2, 3))
    with fake.open() as gpt:
        logits = gpt.logits_on_device(ids)
        logits.device = (1, 0)
        assert_array_equal(np.from_dlpack(logits), logits_of(ids.ids))
    assert ids.streams == [1]  # the lender was told which stream reads
    assert fake.engine.contexts[0].addresses["input_ids"] == ids.ids.ctypes.data


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
        gpt.logits_on_device(OnTheGpu(fake.cuda, ids))


def test_onnx_runtime_leaves_nothing_on_a_device(session: Session) -> None:
    with pytest.raises(BackendUnavailableError, match="onnxruntime leaves no logits on the GPU"):
        session.logits_on_device([[1]])
