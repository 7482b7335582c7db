"""TensorRT and TensorRT for RTX: one API but for what is said in this file."""

from __future__ import annotations

import importlib
import importlib.util
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from gptexport.errors import OptionError
from gptexport_runtime.backends.gpu.device import Gpu, find_gpu, why_no_gpu
from gptexport_runtime.engine_file import TENSORRT, TENSORRT_RTX
from gptexport_runtime.errors import BackendUnavailableError

Backend = Literal["tensorrt", "tensorrt-rtx"]
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
INSTALL = {TENSORRT: "pip install gptexport[tensorrt]", TENSORRT_RTX: "pip install gptexport[rtx]"}
OLDEST = {TENSORRT: (10, 15), TENSORRT_RTX: (1, 7)}  # the oldest whose API was held against the code


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What may be asked of the builder. Each default is what the library does by itself, but that TF32 is off."""

    tf32: bool = False  # round fp32 operands of matrix products to 10 bits: faster, other numbers than the model's
    workspace: int | None = None  # MB; None: the library's limit
    optimization_level: int | None = None  # 0 ... 5
    timing_cache: Path | None = None  # read, and written back
    weight_streaming: bool = False  # weights may stay in host memory
    refit: bool = False  # weights may be replaced later
    version_compatible: bool = False  # newer versions of the library may run it
    hardware_compatible: bool = False  # GPUs since Ampere may run it


# Why TensorRT for RTX has not what TensorRT has [ran with 1.7.1: warnings, or the same bytes with and without]
RTX_LACKS = {
    "optimization_level": "it builds the same engine at every level",
    "timing_cache": "it times nothing while it builds, so there is nothing to keep",
    "version_compatible": "its engines run with the version that built them",
    "hardware_compatible": "name each GPU with --compute-capability instead: one engine may be for several",
}


@dataclass(frozen=True)
class Flavour:
    """The library that builds, and the GPU that is here (None: none)."""

    name: str  # TENSORRT or TENSORRT_RTX
    trt: types.ModuleType
    version: str
    gpu: Gpu | None

    @property
    def targets(self) -> dict[str, Any]:
        """Compute capabilities that can be named for an engine, "8.9" -> ComputeCapability.SM89. RTX only."""
        if self.name != TENSORRT_RTX:
            return {}
        members = self.trt.ComputeCapability.__members__
        return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def open_flavour(backend: Backend | None) -> Flavour:
    """Import the library that is to build. None: the one that is installed; of both TensorRT where there is a GPU.

    Raises:
        BackendUnavailableError: it is not installed, is too old, or needs a GPU and there is none.
    """
    gpu = None if why_no_gpu() else find_gpu()
    name = backend or _default(gpu)
    assert name in get_args(Backend)
    if name == TENSORRT and gpu is None:  # before the import: its libraries may not even load
        raise BackendUnavailableError(
            f"TensorRT builds on the GPU that will run the engine, and {why_no_gpu()} "
            "TensorRT for RTX builds without one: --backend tensorrt-rtx."
        )
    trt = import_library(name)
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise BackendUnavailableError(
            f"{name} {version} is too old; expected {oldest} or newer. Upgrade: `{INSTALL[name]}`."
        )
    return Flavour(name, trt, version, gpu)


def import_library(name: str) -> types.ModuleType:
    """The Python module of a flavour.

    Raises:
        BackendUnavailableError: it is not installed, or its libraries do not load.
    """
    module = MODULES[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendUnavailableError(f"{module} does not import: {error}. Install it again.") from error
        raise BackendUnavailableError(f"{module} is not installed: `{INSTALL[name]}`.") from error
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{module} does not import: {error}. Install it again: `{INSTALL[name]}`."
        ) from error


def check_options(flavour: Flavour, options: BuildOptions) -> None:
    """Refuse what this flavour has not, rather than ignore it.

    Raises:
        OptionError: an option is not this flavour's, or out of range.
        BackendUnavailableError: an option needs a GPU, and there is none.
    """
    if flavour.name == TENSORRT_RTX:
        for option in fields(options):
            if option.name in RTX_LACKS and getattr(options, option.name) not in (None, False):
                flag = "--" + option.name.replace("_", "-")
                raise OptionError(f"TensorRT for RTX has no {flag}: {RTX_LACKS[option.name]}.")
        if options.refit and flavour.gpu is None:
            raise BackendUnavailableError(
                f"TensorRT for RTX compiles a refittable engine on a GPU only, and {why_no_gpu()} Leave --refit out."
            )
    level = options.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise OptionError(f"--optimization-level is {level}; expected 0 to 5.")


def choose_targets(flavour: Flavour, asked: list[str]) -> list[str]:
    """The compute capabilities to compile for. Without any asked for: that of the GPU here.

    Raises:
        OptionError: one is not a target of this flavour; or none was asked for and there is no GPU to take it from.
    """
    if flavour.name == TENSORRT:
        assert flavour.gpu is not None
        if asked and asked != [flavour.gpu.compute_capability]:
            raise OptionError(
                f"TensorRT builds for the GPU it runs on ({flavour.gpu.name}, {flavour.gpu.compute_capability}) "
                f"and for no other; got --compute-capability {', '.join(asked)}. "
                "Build on that GPU, or name several with --backend tensorrt-rtx."
            )
        return [flavour.gpu.compute_capability]
    known = ", ".join(flavour.targets)
    if not asked and flavour.gpu is None:
        raise OptionError(
            f"there is no GPU here to build for. Say for which with --compute-capability, one of {known}; "
            "it may be given more than once."
        )
    targets = list(dict.fromkeys(asked)) or [flavour.gpu.compute_capability if flavour.gpu else ""]
    for target in targets:
        if target not in flavour.targets:
            name = {"9.0": " (Hopper: H100, H200)", "10.0": " (Blackwell: B200)"}.get(target, "")
            raise OptionError(
                f"TensorRT for RTX {flavour.version} has no target {target}{name}; it has {known}. "
                "For a data-centre GPU use --backend tensorrt on that GPU."
            )
    return targets


def _default(gpu: Gpu | None) -> str:
    found = [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]
    if not found:
        raise BackendUnavailableError(
            f"neither TensorRT nor TensorRT for RTX is installed: `{INSTALL[TENSORRT_RTX]}` builds anywhere, "
            f"`{INSTALL[TENSORRT]}` builds on the GPU that will run the engine."
        )
    if len(found) == 1:
        return found[0]
    return TENSORRT if gpu is not None else TENSORRT_RTX
