"""What ONNX Runtime needs to know of an execution provider, and what we do."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.ort.binding import Binding
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.errors import BackendUnavailableError


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider, and the device that it computes on.

    To add one, OpenVINO for example, write a file beside this one with such an object and name the object in
    PROVIDERS. `load(device=...)`, "auto", `gptexport doctor` and the checks of a bundle's devices then know it.
    """

    device: str  # what `load` is asked for: "cuda"
    name: str  # as ONNX Runtime spells it: "CUDAExecutionProvider"
    why_not: Callable[[types.ModuleType], str | None]
    """None where it runs here; else the first thing in its way, and what to do about it. It tries, in the end: see
    `trial.why_not_running`."""
    bind: Callable[[], Binding]
    """Makes what holds inputs, outputs and caches: `HostBinding` where the provider reads and writes the host's memory,
    which ONNX Runtime sees to for any provider; `DeviceBinding` for memory of its own."""
    tokens_at_once: int  # B×T of one run: rows beyond are computed in further runs
    threads: Callable[[], int]  # of the CPU, where the caller does not say
    splits_calls: bool = False  # a call of more than `tokens_at_once` is computed in several runs; else prompts alone
    opens_at_load: bool = False  # `load` opens the logits graph; False: it tries it, and each is opened when needed
    options: Callable[[OpenOptions, bool], Mapping[str, str]] = lambda _options, _captures: {}
    """The provider's own options; the bool: whether CUDA graphs will be captured."""
    entries: Callable[[OpenOptions], Mapping[str, str]] = lambda _options: {}  # of the session: its config entries
    lacks: Callable[[], str | None] = lambda: None
    """What it runs without and would better have, and what to do about it; asked where it runs."""
    library: Callable[[], Path] | None = None
    """The shared library of a provider that comes as a plugin. None: it is built into the package."""

    def attach(self, ort: types.ModuleType, session_options: Any, options: Mapping[str, str]) -> dict[str, Any]:
        """Choose this provider, in `session_options` or by the arguments that are returned, of `InferenceSession`.

        Raises:
            BackendUnavailableError: the plugin has no device here.
        """
        if self.library is None:
            return {"providers": [(self.name, dict(options))]}
        if not any(device.ep_name == self.name for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(self.name, str(self.library()))
        devices = [device for device in ort.get_ep_devices() if device.ep_name == self.name]
        if not devices:
            raise BackendUnavailableError(f"{self.name} finds no device that it could run on.")
        session_options.add_provider_for_devices(devices, dict(options))
        return {}

    def __str__(self) -> str:
        return self.device
