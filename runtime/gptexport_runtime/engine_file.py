"""A TensorRT engine's header and its sidecar `*.engine.json`: what it is, without TensorRT and without a GPU.

An engine is native code, bound to a library version and to a kind of GPU. Nothing in here executes it; a session
deserializes only the engine that its sidecar names by hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gptexport_runtime.contract.manifest import FileEntry, ModelInfo
from gptexport_runtime.errors import ArtifactError, InputError

ENGINE_SUFFIX = ".engine"
FORMAT = "gptexport-engine"
FORMAT_VERSION = 1

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
MAGIC = {b"ftrt": TENSORRT, b"vtrt": TENSORRT_RTX}
HEADER_BYTES = 28  # magic in 0-3, version in 24-27: undocumented, so a hint that fails early and never the only check


@dataclass(frozen=True)
class Header:
    """What the engine file says of itself in its first bytes."""

    flavour: str  # TENSORRT or TENSORRT_RTX
    version: str  # of the library that built it: "1.7.1.116"


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
            object.__setattr__(self, name, tuple(shape))
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
    flavour: str
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

    @property
    def info(self) -> ModelInfo:
        try:
            known = {f.name for f in fields(ModelInfo)}
            return ModelInfo(**{key: value for key, value in self.model.items() if key in known})
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"engine sidecar: model: {error}. Build the engine again.") from error

    @property
    def rebuild_command(self) -> str:
        """What builds this engine again, on another machine or with another version."""
        parts = [f"gptexport trt BUNDLE -o {self.engine.file} --backend {self.flavour}"]
        for name in ("min", "opt", "max"):
            parts += [f"--{name} {'x'.join(map(str, getattr(profile, name)))}" for profile in self.profiles]
        if self.flavour == TENSORRT_RTX:
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


def sidecar_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def read_header(data: bytes, path: Path) -> Header:
    """What the first bytes of an engine say.

    Raises:
        ArtifactError: they are not those of an engine.
    """
    if len(data) < HEADER_BYTES or data[:4] not in MAGIC:
        raise ArtifactError(
            f"{path} is not a TensorRT engine, or is damaged: it begins with {data[:4]!r}; expected "
            f"{' or '.join(repr(magic) for magic in MAGIC)}. Build it with `gptexport trt`."
        )
    return Header(MAGIC[data[:4]], ".".join(map(str, data[24:28])))


def read_engine_info(path: Path) -> EngineInfo:
    """Read the sidecar of an engine, and check that it is this engine's. Reads all of the engine, a piece at a time.

    Raises:
        ArtifactError: the engine or its sidecar is missing or damaged, or they do not belong together.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file.read(HEADER_BYTES), path)
            info = _read_sidecar(path)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    _check_identity(path, header, info, path.stat().st_size, sha256)
    return info


def read_engine(path: Path) -> tuple[EngineInfo, bytes]:
    """As `read_engine_info`, with the engine: what is deserialized must be the very bytes that were checked."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    header = read_header(data, path)
    info = _read_sidecar(path)
    _check_identity(path, header, info, len(data), hashlib.sha256(data).hexdigest())
    return info, data


def _read_sidecar(path: Path) -> EngineInfo:
    sidecar = sidecar_path(path)
    try:
        text = sidecar.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} has no {sidecar.name} beside it, without which nobody knows what it is. An engine is native code: "
            "gptexport runs none that it cannot identify. Copy both files, or build it again with `gptexport trt`."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{sidecar} cannot be read: {error}") from error
    return parse_engine_info(text, sidecar)


def _check_identity(path: Path, header: Header, info: EngineInfo, size: int, sha256: str) -> None:
    sidecar = sidecar_path(path).name
    advice = f"Copy both again, or build it again: {info.rebuild_command}"
    if size != info.engine.bytes:
        raise ArtifactError(
            f"{path} has {size} bytes; {sidecar} is of an engine of {info.engine.bytes}. "
            f"It is truncated, or this is another engine's sidecar. {advice}"
        )
    if sha256 != info.engine.sha256:
        raise ArtifactError(
            f"{path} has sha256 {sha256}; {sidecar} is of an engine with {info.engine.sha256}. "
            f"It is damaged, or this is another engine's sidecar. {advice}"
        )
    if (header.flavour, header.version) != (info.flavour, info.version):
        raise ArtifactError(
            f"{path} says that {header.flavour} {header.version} built it; {sidecar} says {info.flavour} "
            f"{info.version}. Build it again: {info.rebuild_command}"
        )


def parse_engine_info(text: str, where: Path) -> EngineInfo:
    """Parse and validate a sidecar.

    Raises:
        ArtifactError: it is not an engine's sidecar, of another format version, or damaged.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{where} is not JSON ({error}). It is damaged: build the engine again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f'{where} is not the sidecar of an engine: expected "format": "{FORMAT}".')
    if data.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{where} has format_version {data.get('format_version')!r}; this gptexport reads {FORMAT_VERSION}. "
            "Build the engine again with this version, or upgrade gptexport-runtime."
        )
    known = {f.name for f in fields(EngineInfo)}
    try:
        values = {key: value for key, value in data.items() if key in known}
        values["engine"] = FileEntry(**values["engine"])
        values["profiles"] = tuple(Profile(**profile) for profile in values["profiles"])
        for kind in ("inputs", "outputs"):
            values[kind] = tuple(TensorInfo(**{**item, "shape": tuple(item["shape"])}) for item in values[kind])
        for name in ("compute_capabilities", "activation_bytes"):
            values[name] = tuple(values[name])
        for name in ("options", "onnx", "model", "graph", "producer", "source", "parity", "built_on"):
            if not isinstance(values.get(name) or {}, dict):
                raise TypeError(f"{name} is {values[name]!r}; expected an object")
        info = EngineInfo(**values)
        if not info.profiles:
            raise ValueError("profiles is empty")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{where} is damaged ({error!r}). Build the engine again.") from error
    info.info  # noqa: B018 - validates `model` now rather than at first use
    return info


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
