"""OpenVINO on Intel's CPUs, by the plugin that stands beside onnxruntime (onnxruntime-ep-openvino, OpenVINO inside).

It is taken where OpenVINO's own package is not installed (openvino.py). It compiles a graph as one piece, for the
precision that it is told, on threads of its own. It offers devices of Intel's alone: of a CPU by another vendor it
knows nothing, though OpenVINO itself runs there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import types
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.openvino.package import CPU, properties
from gptexport_runtime.backends.ort.host import HostBinding
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import TOKENS_AT_ONCE, usable_cores
from gptexport_runtime.backends.ort.providers.openvino import describe, export_with
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.backends.ort.providers.trial import why_not_running
from gptexport_runtime.errors import BackendUnavailableError

PACKAGE = "onnxruntime-ep-openvino"
MODULE = "onnxruntime_ep_openvino"
INSTALL = "pip install gptexport-runtime[openvino-plugin]"
KIND = "ov_device"  # of a device's metadata


def _library() -> Path:
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise BackendUnavailableError(f"{PACKAGE} is not installed: `{INSTALL}`.")
    # where the package's get_library_path() finds it, which importing would do the same
    return Path(spec.origin).with_name("libonnxruntime_providers_openvino_plugin.so")


def _why_not(ort: types.ModuleType) -> str | None:
    if not hasattr(ort, "register_execution_provider_library"):
        return f"onnxruntime {ort.__version__} takes no plugins: they need 1.23 or newer. Upgrade it."
    try:
        devices = OPENVINO_PLUGIN.devices(ort)
    except BackendUnavailableError as error:
        known = f" Install the {PACKAGE} that goes with it: `{INSTALL}`."
        return str(error) if "is not installed" in str(error) else str(error) + known
    if not devices:
        vendors = {device.device.vendor for device in ort.get_ep_devices() if device.ep_name == "CPUExecutionProvider"}
        return (
            f"{PACKAGE} {_version()} offers no CPU here. It takes those of Intel alone, and ONNX Runtime says that "
            f"this one is of {' and '.join(sorted(vendors)) or 'nobody'}. `pip install gptexport-runtime[openvino]` "
            "brings OpenVINO itself, which takes any."
        )
    return why_not_running(ort, OPENVINO_PLUGIN)


def _version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _about(ort: types.ModuleType) -> str | None:
    name = OPENVINO_PLUGIN.devices(ort)[0].ep_metadata.get("FULL_DEVICE_NAME", "a CPU")
    return describe(f"{PACKAGE} {_version()}", name, _capabilities(ort))


def _capabilities(ort: types.ModuleType) -> list[str]:
    found: str = OPENVINO_PLUGIN.devices(ort)[0].ep_metadata.get("OPTIMIZATION_CAPABILITIES", "")
    return found.split()


def _chooses(device: Any) -> bool:
    return bool(device.ep_metadata.get(KIND) == CPU)


def _options(options: OpenOptions, _captures: bool) -> dict[str, str]:
    return {"load_config": json.dumps({CPU: properties(options)})}


OPENVINO_PLUGIN = Provider(
    device="openvino",
    name="OpenVINOExecutionProvider",
    why_not=_why_not,
    bind=lambda: HostBinding("openvino", TOKENS_AT_ONCE),
    tokens_at_once=TOKENS_AT_ONCE,
    threads=usable_cores,
    options=_options,
    opens_at_load=True,  # what it does not take is then said at once
    about=_about,
    export_with=lambda ort: export_with(_capabilities(ort)),
    is_there=lambda _ort: importlib.util.find_spec(MODULE) is not None,
    library=_library,
    chooses=_chooses,
    whole=True,
    for_any=False,
)
