"""A TensorRT engine's file: its header, and whether the sidecar beside it is its own. Nothing in here executes it.

An engine is native code, bound to a library version and to a kind of GPU. A session deserializes only the engine that
its sidecar names by hash.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from gptexport_runtime.contract.edition import EDITIONS, Edition
from gptexport_runtime.contract.engine import EngineInfo, sidecar_path
from gptexport_runtime.errors import ArtifactError
from gptexport_runtime.files import DESCRIPTION_BYTES, open_regular, read_small, read_text, status

HEADER_BYTES = 28  # magic in 0-3, version in 24-27: undocumented, so a hint that fails early and never the only check


@dataclass(frozen=True)
class Header:
    """What the engine file says of itself in its first bytes."""

    edition: Edition
    version: str  # of the library that built it: "1.7.1.116"


def read_header(data: bytes, path: Path) -> Header:
    """What the first bytes of an engine say.

    Raises:
        ArtifactError: they are not those of an engine.
    """
    edition = next((edition for edition in EDITIONS.values() if data[:4] == edition.magic), None)
    if len(data) < HEADER_BYTES or edition is None:
        raise ArtifactError(
            f"{path} is not a TensorRT engine, or is damaged: it begins with {data[:4]!r}; expected "
            f"{' or '.join(repr(edition.magic) for edition in EDITIONS.values())}. Build it with `gptexport trt`."
        )
    return Header(edition, ".".join(map(str, data[24:28])))


def read_sidecar(path: Path) -> EngineInfo:
    """The sidecar of an engine. That it is this engine's is for `read_engine` to say.

    Raises:
        ArtifactError: the file has no engine's header, or its sidecar is missing or damaged.
    """
    try:
        with open_regular(path) as file:
            read_header(file.read(HEADER_BYTES), path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    sidecar = sidecar_path(path)
    if status(sidecar) is None:
        raise ArtifactError(
            f"{path} has no {sidecar.name} beside it, so it cannot be identified. An engine is native code: "
            "gptexport runs none that it cannot identify. Copy both files, or build it again with `gptexport trt`."
        )
    info, *before = EngineInfo.all_from_json(read_text(sidecar, DESCRIPTION_BYTES), str(sidecar))
    if before and _measure(path)[1:] == (before[0].engine.bytes, before[0].engine.sha256):
        return before[0]
    return info


def read_engine(path: Path, info: EngineInfo) -> bytes:
    """The engine that `info` describes: what is deserialized must be the very bytes that were checked.

    Raises:
        ArtifactError: it is another one, or damaged.
    """
    try:
        data = read_small(path, info.engine.bytes)  # whatever the file's size is, no more is read than it should have
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    _check_identity(path, info, read_header(data, path), len(data), hashlib.sha256(data).hexdigest())
    return data


def read_engine_info(path: Path) -> EngineInfo:
    """The sidecar of an engine, after a look at all of the engine, a piece at a time.

    Raises:
        ArtifactError: the engine or its sidecar is missing or damaged, or they do not belong together.
    """
    info = read_sidecar(path)
    _check_identity(path, info, *_measure(path))
    return info


def _measure(path: Path) -> tuple[Header, int, str]:
    """Header, size and sha256 of an engine, read a piece at a time."""
    try:
        with open_regular(path) as file:
            header, size = read_header(file.read(HEADER_BYTES), path), os.fstat(file.fileno()).st_size
            file.seek(0)
            return header, size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error


def _check_identity(path: Path, info: EngineInfo, header: Header, size: int, sha256: str) -> None:
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
    if (header.edition, header.version) != (info.edition, info.version):
        raise ArtifactError(
            f"{path} says that {header.edition} {header.version} built it; {sidecar} says {info.edition} "
            f"{info.version}. Build it again: {info.rebuild_command}"
        )
