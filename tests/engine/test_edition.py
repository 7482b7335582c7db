"""Which library builds, for which GPU, with which options: decided without one, where the library is not needed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptexport.engine import BuildOptions, Library, choose_targets, edition, open_library
from gptexport.engine.edition import check_options
from gptexport.errors import OptionError
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.backends.gpu.device import Gpu
from gptexport_runtime.contract.edition import TENSORRT, TENSORRT_RTX, Edition

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", driver_cuda="13.0")
BARE: Any = SimpleNamespace()
CAPABILITIES: Any = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM89": 89, "SM120": 120})


def tensorrt(gpu: Gpu | None = H200) -> Library:
    return Library(TENSORRT, BARE, "11.4.0.106", gpu)


def rtx(gpu: Gpu | None = None) -> Library:
    module: Any = SimpleNamespace(ComputeCapability=CAPABILITIES)
    return Library(TENSORRT_RTX, module, "1.7.1.116", gpu)


def test_tensorrt_builds_for_the_gpu_here_and_no_other() -> None:
    assert choose_targets(tensorrt(), []) == ["9.0"]
    assert choose_targets(tensorrt(), ["9.0"]) == ["9.0"]
    with pytest.raises(OptionError, match=r"builds for the GPU it runs on \(NVIDIA H200, 9\.0\) and for no other; got"):
        choose_targets(tensorrt(), ["8.9"])


def test_rtx_builds_for_what_is_named_or_the_gpu_here() -> None:
    assert choose_targets(rtx(), ["12.0", "8.9", "12.0"]) == ["12.0", "8.9"]
    ada = Gpu(name="RTX 4090", compute_capability="8.9", driver_cuda="13.0")
    assert choose_targets(rtx(ada), []) == ["8.9"]
    with pytest.raises(OptionError, match=r"no target 9\.0 \(Hopper: H100, H200\); it has 8\.9, 12\.0\."):
        choose_targets(rtx(H200), [])


def test_tensorrt_has_the_options_that_rtx_has_not() -> None:
    options = BuildOptions(
        timing_cache=Path("cache"), optimization_level=5, version_compatible=True, hardware_compatible=True, refit=True
    )
    check_options(tensorrt(), options)
    with pytest.raises(OptionError, match="--optimization-level is 6; expected 0 to 5"):
        check_options(tensorrt(), BuildOptions(optimization_level=6))


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [
        ({"tensorrt_rtx"}, None, TENSORRT_RTX),
        ({"tensorrt_rtx"}, H200, TENSORRT_RTX),
        ({"tensorrt", "tensorrt_rtx"}, None, TENSORRT_RTX),
        ({"tensorrt", "tensorrt_rtx"}, H200, TENSORRT),
        ({"tensorrt"}, H200, TENSORRT),
    ],
)
def test_default_is_what_can_build_here(
    installed: set[str], gpu: Gpu | None, chosen: Edition, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        return (name in installed or None) if name.startswith("tensorrt") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(edition, "why_no_gpu", lambda: None if gpu else "there is no NVIDIA driver.")
    monkeypatch.setattr(edition, "find_gpu", lambda: gpu)
    for name in installed:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__="99.0.0.0"))
    assert open_library(None).edition is chosen


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        BackendUnavailableError, match=r"neither TensorRT nor TensorRT for RTX is installed: `pip install"
    ):
        open_library(None)


def test_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.6.9.1"))
    with pytest.raises(BackendUnavailableError, match=r"tensorrt-rtx 1\.6\.9\.1 is too old; expected 1\.7 or newer"):
        open_library("tensorrt-rtx")
