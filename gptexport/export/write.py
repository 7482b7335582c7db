"""Weights and graphs to bytes on disk: each weight once."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from gptexport_runtime.contract import FileEntry

from gptexport.export.portable import weight_of
from gptexport.staging import write_file

PAGE = 4096  # external data that begins on a page can be memory-mapped (onnx.proto, TensorProto.external_data)


@dataclass(frozen=True)
class _Place:
    offset: int
    length: int


class WeightsFile:
    """The one file that several graphs take their weights from. Equal tensors, tied or not, are stored once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._places: dict[tuple[str, bytes], _Place] = {}

    def take(self, graph: ir.Model, progress: Callable[[int], None] = lambda _bytes: None) -> None:
        """Move the weights of `graph` in here; its initializers point at the file afterwards.

        Args:
            progress: called with the bytes of each weight, as it is done.
        """
        for value in graph.graph.initializers.values():
            tensor = weight_of(value)
            if tensor is None:
                continue
            tensor = tensor.detach().contiguous()
            place = self._add(tensor)
            assert value.const_value is not None and value.name is not None
            value.const_value = ir.ExternalTensor(
                location=self.path.name,
                offset=place.offset,
                length=place.length,
                dtype=value.const_value.dtype,
                shape=ir.Shape(tensor.shape),
                name=value.name,
                base_dir=self.path.parent,
            )
            progress(place.length)

    def _add(self, tensor: torch.Tensor) -> _Place:
        data = _bytes_of(tensor)
        key = (str(tensor.dtype), hashlib.sha256(data).digest())
        if key not in self._places:
            self._write(b"\0" * (-self._size % PAGE))
            self._places[key] = _Place(self._size, len(data))
            self._write(data)
        return self._places[key]

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def close(self) -> FileEntry:
        """Flush to the disk, and say what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(file=self.path.name, bytes=self._size, sha256=self._hash.hexdigest())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy. Not through numpy, which has no bfloat16."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def write_graph(graph: ir.Model, path: Path) -> FileEntry:
    """Serialize; what was not moved to a WeightsFile goes inside."""
    data = ir.to_proto(graph).SerializeToString(deterministic=True)
    write_file(path, data)
    return FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
