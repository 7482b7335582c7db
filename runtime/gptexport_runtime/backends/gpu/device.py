"""Is there an NVIDIA GPU, and which? Asked of the driver itself, before any library that would crash without one.

TensorRT's `Runtime()` is made without complaint where there is no GPU, and ends the process at its first call.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

from gptexport_runtime.errors import BackendUnavailableError

# enum CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first GPU that this process may use."""

    name: str
    compute_capability: str  # "8.9"
    driver_cuda: str  # the newest CUDA that the driver runs: "13.0"


def why_no_gpu() -> str | None:
    """None when the driver finds a GPU; else what is in the way, and what to do about it."""
    driver, reason = open_driver()
    return reason if driver is None else None


def find_gpu() -> Gpu:
    """Ask the driver for the first GPU.

    Raises:
        BackendUnavailableError: there is no driver, or it finds no GPU.
    """
    driver, reason = open_driver()
    if driver is None:
        raise BackendUnavailableError(reason)
    name = ctypes.create_string_buffer(256)
    version = ctypes.c_int(0)
    capability = [ctypes.c_int(0), ctypes.c_int(0)]
    code = driver.cuDeviceGetName(name, len(name), 0) or driver.cuDriverGetVersion(ctypes.byref(version))
    for value, attribute in zip(capability, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        code = code or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
    if code:
        raise BackendUnavailableError(f"the NVIDIA driver does not describe its GPU: CUDA error {code}.")
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{capability[0].value}.{capability[1].value}",
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def open_driver() -> tuple[Any, str | None]:
    """The driver's library, initialized and with at least one GPU; or None and the reason."""
    driver_name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(driver_name)
    except OSError as error:
        return None, (
            f"there is no NVIDIA driver: {driver_name} does not load ({error}). In a container, start it with GPUs."
        )
    count = ctypes.c_int(0)
    # cuInit first: cuDeviceGetCount answers 3, not initialized, without it
    if code := int(driver.cuInit(0)) or int(driver.cuDeviceGetCount(ctypes.byref(count))):
        return None, f"the NVIDIA driver finds no GPU: CUDA error {code}{_visible_devices()}. Check `nvidia-smi`."
    if count.value == 0:
        return None, f"the NVIDIA driver finds no GPU{_visible_devices()}. Check `nvidia-smi`."
    return driver, None


def _visible_devices() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
