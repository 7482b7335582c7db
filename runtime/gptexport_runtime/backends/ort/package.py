"""The installed ONNX Runtime: its module, and the packages that bring it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import types
from dataclasses import dataclass
from pathlib import Path

from gptexport_runtime.errors import BackendUnavailableError

CPU_PACKAGE = "onnxruntime"
GPU_PACKAGE = "onnxruntime-gpu"
INSTALL_CPU = "pip install gptexport-runtime[cpu]"
INSTALL_GPU = "pip install gptexport-runtime[gpu]"

SILENT = 4  # ONNX Runtime's severity "fatal": what goes wrong is in our exception, so nothing need be printed


@dataclass(frozen=True)
class Package:
    """An installed distribution that brings `onnxruntime`."""

    name: str
    version: str
    folder: Path  # of its files

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def import_onnxruntime() -> types.ModuleType:
    """The `onnxruntime` module.

    Its telemetry is off unless the environment says otherwise: a runtime sends nothing that it was not asked to send.
    The thread that sends it would also keep a forked child from ending.

    Raises:
        BackendUnavailableError: it is not installed, or does not import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.31; read once, as it is imported
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise BackendUnavailableError(f"onnxruntime does not import: {error}. Install it again.") from error
        raise BackendUnavailableError(
            f"onnxruntime is not installed. One of: `{INSTALL_CPU}` or `{INSTALL_GPU}`, never both."
        ) from error
    except ImportError as error:  # a damaged install, as when one of two packages was uninstalled
        advice = conflict(installed_packages()) or "Install it again."
        raise BackendUnavailableError(f"onnxruntime does not import: {error}. {advice}") from error


def installed_packages() -> tuple[Package, ...]:
    """The installed packages that bring `onnxruntime`."""
    found = []
    for name in (CPU_PACKAGE, GPU_PACKAGE):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            distribution = importlib.metadata.distribution(name)
            folder = Path(str(distribution.locate_file("onnxruntime")))
            found.append(Package(name, distribution.version, folder))
    return tuple(found)


def conflict(found: tuple[Package, ...]) -> str | None:
    """Both packages write the same folder (onnxruntime#26996), so which files are there is a matter of chance."""
    if len({package.folder for package in found}) == len(found):
        return None
    names = " and ".join(map(str, found))
    return (
        f"{names} are both installed and overwrite one another: "
        f"`pip uninstall -y {CPU_PACKAGE} {GPU_PACKAGE}`, then `{INSTALL_CPU}` or `{INSTALL_GPU}`."
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
