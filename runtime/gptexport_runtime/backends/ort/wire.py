"""What an .onnx file holds at its top level, without the onnx package and without reading what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from gptexport_runtime.errors import ArtifactError
from gptexport_runtime.files import open_regular

GRAPH, METADATA, FUNCTIONS = 7, 14, 25  # of ModelProto (onnx.proto)
MOST_FIELDS = 100_000
MOST_METADATA = 1 << 20  # bytes of one entry


def refuse_functions(path: Path) -> None:
    """ONNX Runtime puts the body of a function wherever it is called: 25 that call one another twice are 2^24 nodes.

    Raises:
        ArtifactError: the file cannot be read, or has functions, which gptexport never writes.
    """
    try:
        with open_regular(path) as file:
            for count, (number, _length) in enumerate(_fields(file, os.fstat(file.fileno()).st_size)):
                if number == FUNCTIONS or count > MOST_FIELDS:
                    what = "functions" if number == FUNCTIONS else "more parts than a graph has"
                    raise ArtifactError(
                        f"{path} has {what}, which are not read: they may unfold without bound. Export it with "
                        "`gptexport onnx`, or unfold its functions with onnx.inliner."
                    )
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_metadata(path: Path) -> dict[str, str]:
    """What a graph says of itself in its metadata_props.

    Raises:
        ArtifactError: the file cannot be read, has no graph, or an entry is not UTF-8.
    """
    entries, has_graph = [], False
    try:
        with open_regular(path) as file:
            for number, length in _fields(file, os.fstat(file.fileno()).st_size):
                has_graph = has_graph or (number == GRAPH and length > 0)
                if number == METADATA and length <= MOST_METADATA:
                    entries.append(file.read(length))
        if not has_graph:
            raise ArtifactError(f"{path} is damaged or not an ONNX graph: copy it again, or export again.")
        return dict(map(_entry, entries))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{path} is damaged: its metadata are not UTF-8 ({error.reason}). Copy it again, or export again."
        ) from error


def _entry(data: bytes) -> tuple[str, str]:
    """A StringStringEntryProto: field 1 is the key, 2 the value."""
    stream = BytesIO(data)
    found = {number: stream.read(length).decode() for number, length in _fields(stream, len(data))}
    return found.get(1, ""), found.get(2, "")


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The number and the length of each field of a protobuf message, as ONNX Runtime reads it, and as far as it is one.

    The file stands at the field's bytes meanwhile. A tag is what 32 bits hold of it. A group has no length: its
    beginning and its end are fields, and what is between.
    """
    while file.tell() < size:
        tag = _varint(file)
        if tag is None:
            return
        match tag & 7:
            case 0:
                length = 0 if _varint(file) is not None else None
            case 1:
                length = 8
            case 2:
                length = _varint(file)
            case 5:
                length = 4
            case 3 | 4:
                length = 0
            case _:
                length = None
        broken = length is None or length > size
        start = file.tell()
        yield (tag & 0xFFFFFFFF) >> 3, 0 if broken or length is None else length
        if broken or length is None:
            return
        file.seek(start + length)


def _varint(file: BinaryIO) -> int | None:
    found = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        found |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return found
    return None
