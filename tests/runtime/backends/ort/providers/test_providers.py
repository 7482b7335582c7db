"""A provider is one object and one line: `load`, "auto" and doctor then know it, and nothing else its name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from numpy.testing import assert_allclose

import gptexport_runtime
from gptexport_runtime import BackendUnavailableError, InputError
from gptexport_runtime.backends.ort import providers
from gptexport_runtime.backends.ort.host import HostBinding
from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.probe import probe_providers
from gptexport_runtime.backends.ort.providers import PROVIDERS
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.backends.ort.providers.trial import why_not_running
from tests.support.tiny import TINY

# the CPU's kernels, as a device of their own
NPU: Provider = Provider(
    device="npu",
    name="CPUExecutionProvider",
    why_not=lambda ort: why_not_running(ort, NPU),
    bind=lambda: HostBinding("npu", 64),
    tokens_at_once=64,
    threads=lambda: 1,
    entries=lambda _options: {"session.disable_prepacking": "1"},
    lacks=lambda: "a faster memory",
)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Provider]]:
    """The list, with one more."""
    monkeypatch.setattr(providers, "_running", set())
    before = list(PROVIDERS)
    PROVIDERS.append(NPU)
    yield PROVIDERS
    PROVIDERS[:] = before


def test_another_provider_runs_what_is_asked_of_it(listed: list[Provider], expected: Any, bundle: Path) -> None:
    manifest = bundle / "gptexport.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "runs_on": ["npu"]}))
    for path, device in ((TINY / "logits.onnx", "npu"), (bundle, "npu"), (bundle, "auto")):
        with gptexport_runtime.load(path, device) as session:
            assert (session.device, session.threads) == ("npu", 1)
            assert_allclose(session.logits(expected.ids), expected.logits, atol=2e-5, rtol=0)
    with pytest.raises(
        BackendUnavailableError,
        match=r'runs on NPU alone, and device="cpu" was asked for\. .*here with device="npu".* --target cpu\.',
    ):
        gptexport_runtime.load(bundle, "cpu")
    with pytest.raises(InputError, match="expected one of auto, cpu, cuda, npu, openvino"):
        gptexport_runtime.load(TINY, "tpu")
    probed = {provider.device: provider for provider in probe_providers().providers}
    assert list(probed) == ["cpu", "cuda", "npu", "openvino", "openvino plugin"]
    assert (probed["npu"].lacks, probed["cpu"].lacks) == ("a faster memory", None)


def test_a_provider_that_runs_is_tried_once(listed: list[Provider]) -> None:
    """A try opens a session, which takes as long as hundreds of small calls on a GPU."""
    tried: list[object] = []
    listed[-1] = dataclasses.replace(NPU, name="counted", why_not=lambda ort: tried.append(ort))
    assert [providers.why_not("npu") for _ in range(3)] == [None] * 3 and len(tried) == 1


def test_a_provider_that_does_not_run_says_why(listed: list[Provider]) -> None:
    listed[:] = [dataclasses.replace(NPU, why_not=lambda _ort: "the NPU is asleep."), CPU]
    with pytest.raises(BackendUnavailableError, match='device="npu" is not available: the NPU is asleep'):
        gptexport_runtime.load(TINY / "logits.onnx", "npu")
    with gptexport_runtime.load(TINY / "logits.onnx") as session:
        assert session.device == "cpu"


class Plugins:
    """onnxruntime, with a provider that comes as a library."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.registered: list[tuple[str, str]] = []

    def get_ep_devices(self) -> list[Any]:
        cpu = SimpleNamespace(ep_name="CPUExecutionProvider")
        return [cpu, *(SimpleNamespace(ep_name=name) for name, _ in self.registered * self.devices)]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))


def test_a_plugin_is_registered_once_and_chosen_by_its_devices() -> None:
    plugin = dataclasses.replace(NPU, name="NPUExecutionProvider", library=lambda: Path("libnpu.so"))
    chosen: list[tuple[int, dict[str, str]]] = []
    ort: Any = Plugins(devices=2)
    none: Any = Plugins(devices=0)
    options = SimpleNamespace(add_provider_for_devices=lambda devices, options: chosen.append((len(devices), options)))
    for _ in range(2):
        assert plugin.attach(ort, options, {"precision": "high"}) == {}
    assert ort.registered == [("NPUExecutionProvider", "libnpu.so")]
    assert chosen == [(2, {"precision": "high"})] * 2
    with pytest.raises(BackendUnavailableError, match="NPUExecutionProvider finds no device that it could run on"):
        plugin.attach(none, options, {})


def test_onnxruntime_takes_a_provider_by_its_devices() -> None:
    """The genuine one, with the one provider that it always has a device of."""
    ort = import_onnxruntime()
    plugin = dataclasses.replace(CPU, library=lambda: Path("libunused.so"))
    assert why_not_running(ort, plugin) is None
