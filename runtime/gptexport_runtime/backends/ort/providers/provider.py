"""What ONNX Runtime needs to know of an execution provider, and what we do."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.ort.binding import Binding
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.package import first_line
from gptexport_runtime.errors import BackendUnavailableError

_registered: set[str] = set()  # plugins of this process: one without a device is not to be registered again


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider, and the device that it computes on.

    To add one, write a file beside this one with such an object and name the object in PROVIDERS. `load(device=...)`,
    "auto", `gptexport doctor` and the checks of a bundle's devices then know it.
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
    about: Callable[[types.ModuleType], str | None] = lambda _ort: None
    """Its version and what its device can do, for people; asked where it runs."""
    export_with: Callable[[types.ModuleType], str | None] = lambda _ort: None
    """The options of `gptexport onnx` that make most of it here; None: those of a provider further down the list."""
    library: Callable[[], Path] | None = None
    """The shared library of a provider that comes as a plugin. None: it is built into the package."""
    chooses: Callable[[Any], bool] = lambda _ep_device: True
    """Which of a plugin's devices (`onnxruntime.OrtEpDevice`) it runs on."""
    is_there: Callable[[types.ModuleType], bool] | None = None
    """Whether it is installed at all, which `why_not` takes its time to find out. None: as ONNX Runtime says."""
    open: Callable[[Path | bytes, OpenOptions, Path | None], Any] | None = None
    """Opens a graph where ONNX Runtime does not: the file, or the graph itself and a path that its weights lie beside.
    What it returns says of itself what an `InferenceSession` says, and is run by what `bind` makes. Raises as
    `session.open_session`."""
    backend: str = "onnxruntime"  # what `Session.backend` calls it
    whole: bool = False
    """It compiles a graph as one piece, on threads of its own. ONNX Runtime then leaves nodes as they are written and
    keeps one thread, and a graph of which it does not take every node is refused."""
    for_any: bool = True  # "auto" takes it for an artifact that does not say where it runs

    @property
    def title(self) -> str:
        """The device, and whether a plugin computes on it: several providers may."""
        return f"{self.device} plugin" if self.library is not None else self.device

    def attach(self, ort: types.ModuleType, session_options: Any, options: Mapping[str, str]) -> dict[str, Any]:
        """Choose this provider, in `session_options` or by the arguments that are returned, of `InferenceSession`.

        Raises:
            BackendUnavailableError: the plugin does not load, or has no device here.
        """
        if self.library is None:
            return {"providers": [(self.name, dict(options))]}
        devices = self.devices(ort)
        if not devices:
            raise BackendUnavailableError(f"{self.name} finds no device that it could run on.")
        session_options.add_provider_for_devices(devices, dict(options))
        return {}

    def devices(self, ort: types.ModuleType) -> list[Any]:
        """Those of the plugin's devices that it runs on. The first call in a process registers the plugin.

        Raises:
            BackendUnavailableError: it does not load.
        """
        assert self.library is not None, "a provider of the package has no list of devices"
        if not any(device.ep_name == self.name for device in ort.get_ep_devices()) and self.name not in _registered:
            library = self.library()
            try:
                ort.register_execution_provider_library(self.name, str(library))
            except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
                raise BackendUnavailableError(
                    f"{library.name} does not load into onnxruntime {ort.__version__}: {first_line(error)}."
                ) from error
            _registered.add(self.name)
        return [device for device in ort.get_ep_devices() if device.ep_name == self.name and self.chooses(device)]

    def __str__(self) -> str:
        return self.device
