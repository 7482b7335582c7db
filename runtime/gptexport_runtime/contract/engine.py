"""`*.engine.json`, the sidecar of a TensorRT engine: what the engine is, without TensorRT and without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptexport_runtime.contract.document import Format
from gptexport_runtime.contract.edition import EDITIONS, Edition
from gptexport_runtime.contract.model import FileEntry, ModelInfo, is_plain_name, why_stale
from gptexport_runtime.errors import InputError, shown

FORMAT = "gptexport-engine"
FORMAT_VERSION = 1
BEFORE = "before"  # in a sidecar, while its engine is being replaced: the sidecar of the old engine
SIDECAR = Format(what="the sidecar of an engine", name=FORMAT, version=FORMAT_VERSION, again="build the engine again")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The (B,T) that an engine takes: from `min` to `max`, fastest at `opt`."""

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            shape = getattr(self, name)
            if len(shape) != 2 or not all(isinstance(dim, int) and dim > 0 for dim in shape):
                raise ValueError(f"profile {name} is {shape!r}; expected (B,T) of positive integers")
        if not all(low <= opt <= high for low, opt, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"profile {self} is not min <= opt <= max")

    def takes(self, B: int, T: int) -> bool:
        return self.min[0] <= B <= self.max[0] and self.min[1] <= T <= self.max[1]

    def __str__(self) -> str:
        return f"B {self.min[0]} to {self.max[0]} and T {self.min[1]} to {self.max[1]}"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or output of the engine. In `shape` a name is dynamic, a number is fixed."""

    name: str
    dtype: str  # as numpy spells it
    shape: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """`*.engine.json`. Holds no date and no path: two builds of the same graph write the same bytes."""

    engine: FileEntry
    flavour: str  # the name of its edition of TensorRT
    version: str
    compute_capabilities: tuple[str, ...]  # of the GPUs it was compiled for: ("8.9", "12.0")
    built_on: Mapping[str, Any] | None  # GPU, driver; None: no GPU was there, so it has not run either
    options: Mapping[str, Any]  # what was asked of the builder
    onnx: Mapping[str, str]  # sha256 of the graph and of each file that it takes weights from
    model: Mapping[str, Any]
    dtype: str  # of the weights
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[Profile, ...]
    activation_bytes: tuple[int, ...]  # device memory that one execution context takes, by profile
    weight_bytes: int
    graph: Mapping[str, Any] = field(default_factory=dict)  # what was rewritten for TensorRT, and attention's kernels
    producer: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)  # of the bundle it was built from: the checkpoint's hash
    parity: Mapping[str, Any] | None = None

    quantize = None  # TensorRT is given unquantized graphs alone
    runs_on = ("cuda",)
    what = "this engine"

    def __post_init__(self) -> None:
        if self.flavour not in EDITIONS:
            raise ValueError(f"flavour is {self.flavour!r}; expected {' or '.join(EDITIONS)}")
        if not self.profiles:
            raise ValueError("profiles is empty")
        if self.built_on is not None and not isinstance(self.built_on.get("name"), str):
            raise ValueError("built_on does not name the GPU")
        if wrong := [name for name in self.onnx if not is_plain_name(name)]:
            raise ValueError(f"onnx names the file {shown(wrong[0])}; expected plain file names")

    @property
    def edition(self) -> Edition:
        return EDITIONS[self.flavour]

    @property
    def info(self) -> ModelInfo:
        return SIDECAR.build(ModelInfo, dict(self.model), "engine sidecar: model")

    @property
    def identity(self) -> Mapping[str, Any]:
        """The sha256 of the engine, by the name that a verdict has for it."""
        return {"engine_sha256": self.engine.sha256}

    def why_stale(self) -> str | None:
        return why_stale(self, {"engine_sha256": "another engine"})

    @property
    def rebuild_command(self) -> str:
        """What builds this engine again, on another machine or with another version."""
        parts = [f"gptexport trt BUNDLE -o {self.engine.file} --backend {self.flavour}"]
        for name in ("min", "opt", "max"):
            parts += [f"--{name} {'x'.join(map(str, getattr(profile, name)))}" for profile in self.profiles]
        if self.edition.names_targets:
            parts += [f"--compute-capability {target}" for target in self.compute_capabilities]
        for name, value in self.options.items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                parts.append(f"{flag} FILE" if name == "timing_cache" else flag)
            elif value not in (None, False):
                parts.append(f"{flag} {value}")
        return " ".join(parts)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> EngineInfo:
        """Parse and validate a sidecar; `where` names it in errors.

        Raises:
            ArtifactError: it is not an engine's sidecar, of another format version, or damaged.
        """
        return EngineInfo.all_from_json(text, where)[0]

    @staticmethod
    def all_from_json(text: str, where: str) -> tuple[EngineInfo, ...]:
        """The same; and after it, while the engine is being replaced, the engine that may still be there."""
        data = SIDECAR.load(text, where)
        before = data.get(BEFORE)
        found = tuple(SIDECAR.build(EngineInfo, each, where) for each in (data, before) if each is not None)
        for info in found:
            info.info  # noqa: B018 - validates `model` now rather than at first use
        return found


def sidecar_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def choose_profile(profiles: Sequence[Profile], B: int, T: int) -> int:
    """The profile for a batch of (B,T): of those that take it the one with the least to spare.

    Raises:
        InputError: none takes it; the message names the ranges that there are.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.takes(B, T)]
    if not fitting:
        ranges = "; or ".join(map(str, profiles))
        raise InputError(
            f"ids has B={B}, T={T}; this engine takes {ranges}. "
            "Split the batch, or build an engine with a larger --max."
        )
    return min(fitting, key=lambda index: profiles[index].max[0] * profiles[index].max[1])
