"""The OpenVINO plugin on any x86-64 CPU: it offers devices of Intel's alone, so ONNX Runtime's CPU is said to be one.

For a process of its own, in which nothing has asked for the plugin yet.
"""

from __future__ import annotations

import ctypes
from typing import Any

from gptexport_runtime.backends.ort.package import import_onnxruntime

INTEL = 0x8086  # the vendor's PCI id, by which the plugin chooses
HEADER = 16  # bytes of a Python object before what pybind11 keeps: a pointer to the C++ one


def is_needed() -> bool:
    """Whether ONNX Runtime says that this CPU is another's."""
    return bool(_cpu().vendor_id != INTEL)


def _cpu() -> Any:
    devices = import_onnxruntime().get_ep_devices()
    return next(each.device for each in devices if each.ep_name == "CPUExecutionProvider")


def pretend_intel() -> None:
    """Write Intel's id over the vendor of ONNX Runtime's CPU, in this process, if it is another's."""
    device = _cpu()
    if device.vendor_id == INTEL:
        return
    address = ctypes.c_void_p.from_address(id(device) + HEADER).value
    assert address is not None
    words = (ctypes.c_uint32 * 4).from_address(address)  # of OrtHardwareDevice: type, vendor or device id, ...
    words[list(words).index(device.vendor_id)] = INTEL
    assert device.vendor_id == INTEL, "OrtHardwareDevice is laid out in another way than in onnxruntime 1.31"
