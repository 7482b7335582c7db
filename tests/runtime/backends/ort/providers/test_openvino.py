"""OpenVINO's own package as a provider: whether it is taken, and each reason that it is not."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import gptexport_runtime
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.backends.openvino import package
from gptexport_runtime.backends.ort import providers
from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.probe import probe_providers
from gptexport_runtime.backends.ort.providers import PROVIDERS
from gptexport_runtime.backends.ort.providers.openvino import OPENVINO
from gptexport_runtime.backends.ort.providers.openvino_plugin import OPENVINO_PLUGIN
from tests.support.tiny import TINY

needs_openvino = pytest.mark.skipif(not package.is_installed(), reason="openvino is not installed")


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No provider has run yet."""
    monkeypatch.setattr(providers, "_running", set())


@needs_openvino
def test_it_comes_before_the_plugin() -> None:
    assert providers.why_not("openvino") is None and providers.provider_of("openvino") is OPENVINO
    with gptexport_runtime.load(TINY / "logits.onnx", "openvino") as gpt:
        assert (gpt.backend, gpt.device) == ("openvino", "openvino")


@needs_openvino
def test_doctor_tells_it_from_the_plugin() -> None:
    by_device = {found.device: found for found in probe_providers().providers}
    found = by_device["openvino"]
    assert found.loads and found.about is not None and found.about.startswith(f"openvino {package.version()}, ")
    assert "FP32" in found.about and "openvino plugin" in by_device


def test_the_export_that_it_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = import_onnxruntime()
    for can, advised in ((["FP32", "BF16"], "--target openvino --dtype bfloat16"), (["FP32"], None)):
        core = types.SimpleNamespace(get_property=lambda _device, _name, can=can: can)
        monkeypatch.setattr(package, "core", lambda core=core: core)
        assert OPENVINO.export_with(ort) == advised


@pytest.mark.usefixtures("untried")
def test_neither_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the package's: it is the one to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert providers.why_not("openvino") == "openvino is not installed: `pip install gptexport-runtime[openvino]`."
    with pytest.raises(BackendUnavailableError, match='device="openvino" is not available: openvino is not installed'):
        gptexport_runtime.load(TINY, "openvino")


@pytest.mark.usefixtures("untried")
def test_the_plugin_where_it_alone_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = dataclasses.replace(OPENVINO_PLUGIN, is_there=lambda _ort: True, why_not=lambda _ort: "it has no device.")
    absent = dataclasses.replace(OPENVINO, is_there=lambda _ort: False)
    monkeypatch.setattr(providers, "PROVIDERS", [absent, plugin, PROVIDERS[-1]])
    assert providers.provider_of("openvino") is plugin and providers.why_not("openvino") == "it has no device."


def test_a_damaged_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise RuntimeError('a library is gone')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    reason = OPENVINO.why_not(import_onnxruntime())
    assert reason == "openvino does not import: a library is gone. Install it again."


@needs_openvino
@pytest.mark.usefixtures("untried")
def test_one_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read_model(self, _model: bytes) -> object:
            return None

        def compile_model(self, _model: object, _device: str) -> object:
            raise RuntimeError("no CPU here")

    monkeypatch.setattr(providers.openvino, "core", Broken)
    assert "does not run: no CPU here. Install it again" in str(OPENVINO.why_not(import_onnxruntime()))


@needs_openvino
def test_openvino_reports_nothing(tmp_path: Path) -> None:
    """Its telemetry would start a process at the import, and leave files in the home folder."""
    code = """
import multiprocessing, sys
from gptexport_runtime.backends.openvino.package import core
core()
assert not multiprocessing.active_children()
assert "openvino_telemetry" not in sys.modules, "and whoever wants it may import it"
"""
    home = {"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "CI": "", **home})
    assert not list(tmp_path.iterdir())
