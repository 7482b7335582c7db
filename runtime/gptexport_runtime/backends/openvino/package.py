"""The installed OpenVINO: its module, and what its CPU device is told and can do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from gptexport_runtime.backends.forked import keep_in_child
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.package import first_line
from gptexport_runtime.backends.ort.providers.cpu import usable_cores
from gptexport_runtime.errors import BackendUnavailableError

PACKAGE = "openvino"
INSTALL = "pip install gptexport-runtime[openvino]"
TELEMETRY = "openvino_telemetry"  # installed with it
CPU = "CPU"  # OpenVINO's name of the device
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def import_openvino() -> types.ModuleType:
    """The `openvino` module.

    Its telemetry is off, as ONNX Runtime's is: a runtime sends nothing that it was not asked to send. OpenVINO would
    start a process that reports each import, and does without where the package that sends it is not installed.

    Raises:
        BackendUnavailableError: it is not installed, or does not import.
    """
    if not is_installed():
        raise BackendUnavailableError(f"{PACKAGE} is not installed: `{INSTALL}`.")
    try:
        with _as_if_not_installed(TELEMETRY):
            return importlib.import_module(PACKAGE)
    except Exception as error:  # a damaged install fails in many ways
        raise BackendUnavailableError(f"{PACKAGE} does not import: {first_line(error)}. Install it again.") from error


@contextmanager
def _as_if_not_installed(name: str) -> Iterator[None]:
    """Whoever imports a module meanwhile does not find it, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # of which an import makes an ImportError
    try:
        yield
    finally:
        del sys.modules[name]


@cache
def _begun() -> tuple[Any, int]:
    """The one Core, and the process that made it."""
    made = import_openvino().Core()
    keep_in_child(made)
    return made, os.getpid()


def core() -> Any:
    """The one `openvino.Core` of this process.

    Raises:
        BackendUnavailableError: OpenVINO is missing, or was begun before this process was forked: what its threads do
            would never be done here.
    """
    made, process = _begun()
    if process != os.getpid():
        raise BackendUnavailableError(
            f"{PACKAGE} was used before this process was forked, and does not work in both. Start processes with "
            '"spawn" (multiprocessing.set_start_method), or use it in the child alone.'
        )
    return made


def version() -> str:
    """As people know it: "2026.4.1"."""
    return str(import_openvino().get_version()).split("-")[0]


def capabilities() -> list[str]:
    """What the CPU computes in, of OpenVINO's names: "FP32", "BF16" …"""
    return list(core().get_property(CPU, "OPTIMIZATION_CAPABILITIES"))


def properties(options: OpenOptions) -> dict[str, str]:
    """What OpenVINO's CPU device is told, through the package or the plugin."""
    cores = usable_cores()
    threads = options.threads or cores
    return {
        # else it chooses bfloat16 by itself where the CPU has it: another model than a float32 bundle's
        "INFERENCE_PRECISION_HINT": PRECISIONS[options.dtype],
        "INFERENCE_NUM_THREADS": str(threads),
        # a step is a tenth faster where no thread moves; but fewer threads would be on the first cores, in any process
        "ENABLE_CPU_PINNING": "YES" if options.spin and threads >= cores else "NO",
    }
