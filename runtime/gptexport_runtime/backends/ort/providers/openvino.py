"""OpenVINO on any CPU, by its own package, which compiles a graph without ONNX Runtime.

Beside the plugin (openvino_plugin.py) it is not bound to Intel's CPUs, and writes its output where the caller wants it.
"""

from __future__ import annotations

import types

import numpy as np

from gptexport_runtime.backends.openvino.package import (
    CPU,
    INSTALL,
    PACKAGE,
    capabilities,
    core,
    import_openvino,
    is_installed,
    version,
)
from gptexport_runtime.backends.openvino.runner import OpenVinoBinding
from gptexport_runtime.backends.openvino.session import OpenVinoSession
from gptexport_runtime.backends.ort.package import first_line
from gptexport_runtime.backends.ort.providers.cpu import TOKENS_AT_ONCE, usable_cores
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.backends.ort.providers.trial import TINY_MODEL
from gptexport_runtime.errors import BackendUnavailableError


def _why_not(_ort: types.ModuleType) -> str | None:
    try:
        import_openvino()
    except BackendUnavailableError as error:
        return str(error)
    try:
        compiled = core().compile_model(core().read_model(TINY_MODEL), CPU)
        (y,) = compiled([np.array([1.5], np.float32)]).values()
    except BackendUnavailableError as error:
        return str(error)
    except Exception as error:  # whatever stops it is the answer
        return f"{PACKAGE} {version()} does not run: {first_line(error)}. Install it again: `{INSTALL}`."
    return None if y.tolist() == [-1.5] else f"{PACKAGE} {version()} computes wrongly: -(1.5) gave {y.tolist()}."


def describe(what: str, name: str, can: list[str]) -> str:
    """A version, a device, and in which numbers it computes."""
    return f"{what}, {name}: {' '.join(word for word in ('FP32', 'BF16', 'FP16', 'INT8') if word in can)}"


def export_with(can: list[str]) -> str | None:
    """The export that makes most of OpenVINO where `can` is what it computes in."""
    return "--target openvino --dtype bfloat16" if "BF16" in can else None


OPENVINO = Provider(
    device="openvino",
    name="OpenVINO",
    backend="openvino",
    why_not=_why_not,
    bind=lambda: OpenVinoBinding("openvino", TOKENS_AT_ONCE),
    tokens_at_once=TOKENS_AT_ONCE,
    threads=usable_cores,
    about=lambda _ort: describe(
        f"{PACKAGE} {version()}", str(core().get_property(CPU, "FULL_DEVICE_NAME")), capabilities()
    ),
    export_with=lambda _ort: export_with(capabilities()),
    is_there=lambda _ort: is_installed(),
    open=OpenVinoSession,
    for_any=False,
)
