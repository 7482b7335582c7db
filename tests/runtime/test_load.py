"""A device that was asked for runs or is refused with the reason; nothing falls back in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gptexport_runtime
from gptexport_runtime import BackendUnavailableError, InputError
from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.providers import why_not
from tests.support.tiny import TINY


@pytest.fixture
def no_cuda() -> None:
    if why_not("cuda") is None:
        pytest.skip("CUDA runs here")


def test_cuda_without_cuda_is_refused(no_cuda: None, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendUnavailableError, match=r'device="cuda" is not available: .+') as caught:
        gptexport_runtime.load(TINY, "cuda")
    if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
        assert "pip install gptexport-runtime[gpu]" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_auto_without_cuda_is_the_cpu(no_cuda: None) -> None:
    with gptexport_runtime.load(TINY) as session:
        assert session.device == "cpu"


def edit(bundle: Path, **changes: object) -> None:
    manifest = bundle / "gptexport.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


@pytest.mark.parametrize("runs_on", [["cuda"], None])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_bundle_for_cuda_is_refused_on_the_cpu(
    no_cuda: None, device: Any, runs_on: list[str] | None, bundle: Path
) -> None:
    """Before ONNX Runtime says it by the name of a node; and "auto" tells why it is not CUDA here.

    Bundles from before 0.2 do not say where they run: their target and dtype do.
    """
    edit(bundle, target="cuda", dtype="float16", runs_on=runs_on)
    with pytest.raises(
        BackendUnavailableError, match=r"tiny was exported with --target cuda in float16, .*--target cpu\."
    ) as caught:
        gptexport_runtime.load(bundle, device)
    reason = 'device="cpu" was asked for.' if device == "cpu" else why_not("cuda")
    assert str(reason) in str(caught.value)


def test_bundle_for_cuda_in_float32_runs_on_the_cpu(bundle: Path) -> None:
    edit(bundle, target="cuda", runs_on=None)
    with gptexport_runtime.load(bundle, "cpu") as session:
        assert session.device == "cpu"


def test_bundle_for_a_device_of_a_newer_version_is_refused(bundle: Path) -> None:
    edit(bundle, runs_on=["tpu"])
    with pytest.raises(BackendUnavailableError, match=r"runs on TPU alone, and this version of .* runs nothing on 'tp"):
        gptexport_runtime.load(bundle)


OPTIONS = {
    "device": ({"device": "gpu"}, "device is 'gpu'; expected one of auto, cpu, cuda, openvino"),
    "no threads": ({"threads": 0}, "threads is 0; expected an integer from 1 to 1024"),
    "float threads": ({"threads": 2.0}, "threads is 2.0"),
    "bool threads": ({"threads": True}, "threads is True"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        gptexport_runtime.load(TINY, **options)
    assert message in str(caught.value)
