"""The execution providers of ONNX Runtime that a session can run on, a file each."""

from __future__ import annotations

import os
from collections.abc import Collection

from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.ort.providers.cuda import CUDA
from gptexport_runtime.backends.ort.providers.openvino import OPENVINO
from gptexport_runtime.backends.ort.providers.openvino_plugin import OPENVINO_PLUGIN
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.errors import BackendUnavailableError

AUTO = "auto"
# the one line for each; "auto" takes the first that runs here, and so does a device that several compute on
PROVIDERS: list[Provider] = [CUDA, OPENVINO, OPENVINO_PLUGIN, CPU]

_running: set[str] = set()  # providers that were tried in this process, and run
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: _running.clear())  # some do not outlive a fork


def devices() -> list[str]:
    """What `load` may be asked for."""
    return [AUTO, *sorted({provider.device for provider in PROVIDERS})]


def provider_of(device: str) -> Provider:
    """The provider that computes on a device: the first that runs here, else the first that might.

    Raises:
        BackendUnavailableError: there is none in this version.
    """
    providers = [provider for provider in PROVIDERS if provider.device == device]
    if not providers:
        known = ", ".join(dict.fromkeys(provider.device for provider in PROVIDERS))
        raise BackendUnavailableError(f"this version of gptexport-runtime runs nothing on {device!r}, only on {known}.")
    if len(providers) == 1:
        return providers[0]
    there = [provider for provider in providers if _is_there(provider)] or providers
    return next((provider for provider in there if _why_not(provider) is None), there[0])


def why_not(device: str) -> str | None:
    """None where something runs on the device; else the first thing in its way, and what to do about it.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing.
    """
    try:
        return _why_not(provider_of(device))
    except BackendUnavailableError as error:
        return str(error)


def _why_not(provider: Provider) -> str | None:
    if provider.name in _running:
        return None
    reason = provider.why_not(import_onnxruntime())
    if reason is None:
        _running.add(provider.name)
    return reason


def find_provider(device: str, runs_on: Collection[str]) -> Provider | None:
    """The provider for a device of `devices()`; "auto": the first that runs here.

    Args:
        runs_on: the devices that the artifact is for; empty: any.

    Returns: None where the artifact is not for the device, or "auto" finds none that it is for.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing, or does not run on the device that was asked for.
    """
    if device != AUTO and (reason := why_not(device)) is not None:
        raise BackendUnavailableError(f'device="{device}" is not available: {reason}')
    for provider in PROVIDERS:
        fits = provider.device in runs_on if runs_on else provider.for_any or device != AUTO
        wanted = device in (AUTO, provider.device) and fits
        if wanted and _is_there(provider) and _why_not(provider) is None:
            return provider
    return None


def _is_there(provider: Provider) -> bool:
    """Is it installed? `why_not` takes its time to say why not."""
    ort = import_onnxruntime()
    return provider.is_there(ort) if provider.is_there is not None else provider.name in ort.get_available_providers()
