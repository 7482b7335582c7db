"""CUDA's and cuDNN's libraries, wherever pip has put them.

The nvidia-* packages put them into nvidia/*/lib, on no search path. ONNX Runtime's own `preload_dlls` looks beside its
own folder alone, where they are not if it was installed with `pip install --target`, or if they are torch's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import types
from pathlib import Path

CUDNN = "libcudnn.so.9"  # the provider opens it by this name when it first needs it (cudnn_loader.cc)


def why_no_library(ort: types.ModuleType) -> str | None:
    """None where ONNX Runtime's CUDA provider loads, and the libraries that it needs, which this does; else which not.

    Without cuDNN the provider loads too, and fails or takes other kernels when it is run.
    """
    if sys.platform == "win32":  # where a failed load does not name the library that was missing
        return None
    load_library(CUDNN)
    error = load_library(str(Path(ort.__file__ or "").parent / "capi" / "libonnxruntime_providers_cuda.so"))
    if error is None:
        return None
    return (
        f"a library that CUDA needs does not load: {error}. Install the CUDA and cuDNN that onnxruntime-gpu "
        f"{ort.__version__} was built for: `pip install onnxruntime-gpu[cuda,cudnn]=={ort.__version__}`."
    )


def why_no_cudnn() -> str | None:
    """None where cuDNN loads; else why not, and what to do about it."""
    error = load_library(CUDNN) if sys.platform != "win32" else None
    if error is None:
        return None
    return (
        f"cuDNN does not load: {error}. Operations that need it (convolutions) fail when they run. "
        "Install it: `pip install nvidia-cudnn-cu13`."
    )


def load_library(library: str) -> str | None:
    """Load a library, and those of the nvidia-* packages that the loader misses for it.

    Args:
        library: a path, or a name for the loader to find, as itself in an nvidia-* package if it finds none.

    Returns: None, or the loader's message, which names the library that is missing.
    """
    tried: set[str] = set()
    while True:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            message = str(error)
        else:
            return None
        named = re.match(r"(lib[\w.+-]+): cannot open shared object file", message)
        missing = named[1] if named else ""
        path = _in_packages(missing)
        if path is None or missing in tried:
            return message
        tried.add(missing)
        if missing == library:
            library = str(path)
        elif load_library(str(path)) is not None:
            return message


def _in_packages(name: str) -> Path | None:
    """A library of this name in an nvidia-* package, in any folder that modules are imported from."""
    spec = importlib.util.find_spec("nvidia") if name else None  # a namespace package: a folder in each of them
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob(f"*/lib/{name}"))), None)
