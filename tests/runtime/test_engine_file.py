"""An engine is opened only when everything fits; what is wrong is said in the order of the checks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import gptexport_runtime
from gptexport_runtime import ArtifactError, BackendUnavailableError, InputError
from gptexport_runtime.backends.gpu.device import why_no_gpu
from gptexport_runtime.backends.tensorrt import backend as trt
from gptexport_runtime.contract.engine import sidecar_path
from gptexport_runtime.engine_file import read_engine_info
from tests.support.fake_engine import VERSION, Fake, write_engine, write_sidecar
from tests.support.fake_tensorrt import DataType


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


def test_a_sidecar_in_the_middle_of_a_replacement_is_of_the_old_engine_too(tmp_path: Path) -> None:
    """The sidecar is replaced first, and says what the old one said under `before`."""
    path = write_engine(tmp_path, body=b"old!")
    old = json.loads(sidecar_path(path).read_text())
    new = json.loads(sidecar_path(write_engine(tmp_path, body=b"the new one")).read_text())
    write_engine(tmp_path, body=b"old!")
    sidecar_path(path).write_text(json.dumps({**new, "before": old}))
    assert read_engine_info(path).engine.sha256 == old["engine"]["sha256"]
    path.write_bytes(path.read_bytes()[:-4] + b"the new one")
    assert read_engine_info(path).engine.sha256 == new["engine"]["sha256"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/logits.onnx", "a\\b.onnx"])
def test_no_path_in_a_sidecar_is_ever_opened(name: str, tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    sidecar = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps({**sidecar, "onnx": {name: "0" * 64}}))
    with pytest.raises(ArtifactError, match="expected plain file names"):
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


@pytest.mark.parametrize(
    "change",
    [
        {"profiles": []},
        {"profiles": [{"min": [2, 1], "opt": [1, 1], "max": [4, 4]}]},
        {"parity": "passed"},
        {"options": ["tf32"]},
    ],
)
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
