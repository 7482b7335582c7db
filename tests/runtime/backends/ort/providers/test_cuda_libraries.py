"""CUDA's libraries are found in whatever folder pip has put their packages."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptexport_runtime.backends.ort.providers.cuda_libraries import load_library, why_no_cudnn, why_no_library

NEEDS = {  # what the loader finds missing, in the order in which it looks
    "libonnxruntime_providers_cuda.so": ["libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"],
    "libcublas.so.13": ["libcublasLt.so.13"],
}


class Loader:
    """dlopen, on a machine whose search path has none of the libraries in nvidia-* packages."""

    def __init__(self, packages: Path) -> None:
        self.packages = packages
        self.loaded: list[str] = []

    def __call__(self, library: str) -> None:
        name = Path(library).name
        here = Path(library).is_absolute() and (Path(library).exists() or name in NEEDS)
        for needed in [] if here or name in self.loaded else [name]:
            raise OSError(f"{needed}: cannot open shared object file: No such file or directory")
        for needed in NEEDS.get(name, []):
            if needed not in self.loaded:
                raise OSError(f"{needed}: cannot open shared object file: No such file or directory")
        self.loaded.append(name)


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """A folder that `pip install --target` made, with the packages of CUDA 13 and of cuDNN."""
    for name in ("cu13/lib/libcublasLt.so.13", "cu13/lib/libcublas.so.13", "cu13/lib/libcurand.so.10"):
        file = tmp_path / "nvidia" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    cudnn = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    cudnn.parent.mkdir(parents=True)
    cudnn.touch()
    loader = Loader(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", loader)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    return loader


def runtime(folder: Path) -> Any:
    """onnxruntime, which lies apart from the packages of CUDA."""
    return SimpleNamespace(__file__=str(folder / "elsewhere" / "onnxruntime" / "__init__.py"), __version__="1.31.1")


def test_libraries_are_found_apart_from_onnxruntime(loader: Loader, tmp_path: Path) -> None:
    assert why_no_library(runtime(tmp_path)) is None
    assert loader.loaded == [
        "libcudnn.so.9",  # nothing says that it is missing: the provider looks for it when it needs it
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libonnxruntime_providers_cuda.so",
    ]


def test_library_that_is_nowhere_is_named(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "nvidia/cu13/lib/libcublasLt.so.13").unlink()
    reason = why_no_library(runtime(tmp_path))
    assert reason is not None and reason.startswith("a library that CUDA needs does not load: libcublasLt.so.13: cann")
    assert "pip install onnxruntime-gpu[cuda,cudnn]==1.31.1" in reason


def test_cudnn_is_loaded_from_its_package_and_its_absence_is_said(loader: Loader, tmp_path: Path) -> None:
    """The provider loads without it, so nothing else says so."""
    assert why_no_cudnn() is None and loader.loaded == ["libcudnn.so.9"]
    loader.loaded.clear()
    (tmp_path / "nvidia/cudnn/lib/libcudnn.so.9").unlink()
    assert "cuDNN does not load: libcudnn.so.9: cannot open" in str(why_no_cudnn())
    assert why_no_library(runtime(tmp_path)) is None


def test_library_that_helps_nothing_is_loaded_once(monkeypatch: pytest.MonkeyPatch, loader: Loader) -> None:
    """A loader that goes on missing it does not keep us for ever."""
    monkeypatch.setitem(NEEDS, "libodd.so", ["libcudnn.so.9"])

    class Forgetful(list[str]):
        def __contains__(self, _name: object) -> bool:
            return False

    loader.loaded = Forgetful()
    assert "libcudnn.so.9: cannot open" in str(load_library("/libodd.so"))
