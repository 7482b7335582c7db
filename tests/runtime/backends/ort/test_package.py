"""What is installed of ONNX Runtime, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptexport_runtime
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.backends.ort.package import conflict, installed_packages
from gptexport_runtime.backends.ort.probe import probe_providers
from tests.support.tiny import TINY


def test_without_onnxruntime_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"runtime\[cpu\]` or `.*runtime\[gpu\]`, never both"):
        gptexport_runtime.load(TINY, "cpu")
    probe = probe_providers()
    assert probe.version is None and probe.providers and not any(each.loads for each in probe.providers)


def test_damaged_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `pip uninstall onnxruntime-gpu` beside onnxruntime: the package is there, its files are not."""
    monkeypatch.setitem(sys.modules, "onnxruntime.capi", None)
    for name in [name for name in sys.modules if name == "onnxruntime" or name.startswith("onnxruntime.")]:
        if name != "onnxruntime.capi":
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BackendUnavailableError, match=r"onnxruntime does not import: .*capi"):
        gptexport_runtime.load(TINY, "cpu")


@pytest.mark.parametrize("folders", [("site", "site"), ("site", "target")])
def test_two_packages_are_in_conflict_where_they_share_a_folder(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install --target` puts one of them elsewhere, where it overwrites nothing."""
    at = dict(zip(("onnxruntime", "onnxruntime-gpu"), folders, strict=True))

    def distribution(name: str) -> Any:
        return SimpleNamespace(version="1.31.1", locate_file=lambda file: Path(at[name], file))

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    reason = conflict(installed_packages())
    if folders[0] == folders[1]:
        assert reason is not None and reason.startswith(
            "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed and overwrite one another: `pip uninst"
        )
    else:
        assert reason is None
