"""The edition of TensorRT that builds here, and what may be asked of it."""

from __future__ import annotations

import importlib.util
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gptexport.errors import OptionError
from gptexport_runtime.backends.gpu.device import Gpu, find_gpu, why_no_gpu
from gptexport_runtime.backends.tensorrt.library import import_library
from gptexport_runtime.contract.edition import EDITIONS, TENSORRT, TENSORRT_RTX, Edition
from gptexport_runtime.errors import BackendUnavailableError

PACKAGE = "gptexport"


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


@dataclass(frozen=True)
class Library:
    """An installed edition, and the GPU that is here (None: none)."""

    edition: Edition
    trt: types.ModuleType
    version: str
    gpu: Gpu | None

    @property
    def targets(self) -> dict[str, Any]:
        """Compute capabilities that can be named for an engine, "8.9" -> ComputeCapability.SM89."""
        if not self.edition.names_targets:
            return {}
        members = self.trt.ComputeCapability.__members__
        return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def open_library(backend: str | None) -> Library:
    """Import the library that is to build.

    Args:
        backend: the name of its edition; None: the one that is installed, and of both TensorRT where there is a GPU.

    Raises:
        BackendUnavailableError: it is not installed, is too old, or needs a GPU and there is none.
    """
    gpu = None if why_no_gpu() else find_gpu()
    edition = _installed(gpu) if backend is None else EDITIONS[backend]
    if not edition.names_targets and gpu is None:  # before the import: its libraries may not even load
        anywhere = next(edition for edition in EDITIONS.values() if edition.names_targets)
        raise BackendUnavailableError(
            f"{edition.title} builds on the GPU that will run the engine, and {why_no_gpu()} "
            f"{anywhere.title} builds without one: --backend {anywhere}."
        )
    trt = import_library(edition, PACKAGE)
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < edition.oldest:
        oldest = ".".join(map(str, edition.oldest))
        raise BackendUnavailableError(
            f"{edition} {version} is too old; expected {oldest} or newer. Upgrade: `{edition.install(PACKAGE)}`."
        )
    return Library(edition, trt, version, gpu)


def check_options(library: Library, options: BuildOptions) -> None:
    """Refuse options that this edition does not have, rather than ignore them.

    Raises:
        OptionError: an option is not this edition's, or out of range.
        BackendUnavailableError: an option needs a GPU, and there is none.
    """
    for option in fields(options):
        why = library.edition.lacks.get(option.name)
        if why is not None and getattr(options, option.name) not in (None, False):
            flag = "--" + option.name.replace("_", "-")
            raise OptionError(f"{library.edition.title} has no {flag}: {why}.")
    if options.refit and library.gpu is None:
        raise BackendUnavailableError(
            f"{library.edition.title} compiles a refittable engine on a GPU only, and {why_no_gpu()} Leave --refit out."
        )
    level = options.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise OptionError(f"--optimization-level is {level}; expected 0 to 5.")


def choose_targets(library: Library, asked: list[str]) -> list[str]:
    """The compute capabilities to compile for. Without any asked for: that of the GPU here.

    Raises:
        OptionError: one is not a target of this edition; or none was asked for and there is no GPU to take it from.
    """
    here = library.gpu.compute_capability if library.gpu else None
    if not library.edition.names_targets:
        assert library.gpu is not None and here is not None, "it was opened with one"
        if asked and asked != [here]:
            raise OptionError(
                f"{library.edition.title} builds for the GPU it runs on ({library.gpu.name}, {here}) "
                f"and for no other; got --compute-capability {', '.join(asked)}. "
                f"Build on that GPU, or name several with --backend {TENSORRT_RTX}."
            )
        return [here]
    known = ", ".join(library.targets)
    if not asked and here is None:
        raise OptionError(
            f"there is no GPU here to build for. Say for which with --compute-capability, one of {known}; "
            "it may be given more than once."
        )
    targets = list(dict.fromkeys(asked)) or [here or ""]
    for target in targets:
        if target not in library.targets:
            name = {"9.0": " (Hopper: H100, H200)", "10.0": " (Blackwell: B200)"}.get(target, "")
            raise OptionError(
                f"{library.edition.title} {library.version} has no target {target}{name}; it has {known}. "
                f"For a data-centre GPU use --backend {TENSORRT} on that GPU."
            )
    return targets


def _installed(gpu: Gpu | None) -> Edition:
    found = [edition for edition in EDITIONS.values() if importlib.util.find_spec(edition.module) is not None]
    if not found:
        raise BackendUnavailableError(
            f"neither {TENSORRT.title} nor {TENSORRT_RTX.title} is installed: `{TENSORRT_RTX.install(PACKAGE)}` builds "
            f"anywhere, `{TENSORRT.install(PACKAGE)}` builds on the GPU that will run the engine."
        )
    # without a GPU the one that needs none
    able = [edition for edition in found if edition.names_targets == (gpu is None)]
    return (able or found)[0]
