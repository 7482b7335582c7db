"""Weights and graphs to bytes on disk: each weight once."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from gptexport.export.trace import Trace
from gptexport.staging import write_file
from gptexport.tokenizers import Travelling
from gptexport_runtime.contract.manifest import FileEntry, TokenizerEntry

PAGE = 4096  # external data that begins on a page can be memory-mapped (onnx.proto, TensorProto.external_data)

IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float64: ir.DataType.DOUBLE,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.uint8: ir.DataType.UINT8,
    torch.int8: ir.DataType.INT8,
    torch.bool: ir.DataType.BOOL,
}


@dataclass(frozen=True)
class _Place:
    offset: int
    length: int


def write_graphs(
    graphs: Mapping[str, Trace], paths: Mapping[str, Path], weights_path: Path | None
) -> tuple[FileEntry | None, dict[str, FileEntry]]:
    """Write each graph to its path, and the weights of all to one file; `weights_path` None keeps them inside.

    Returns: what was written: the weights, and each graph.
    """
    weights = None
    if weights_path is None:
        for trace in graphs.values():
            _keep_inside(trace)
    else:
        file = WeightsFile(weights_path)
        for trace in graphs.values():
            file.take(trace)
        weights = file.close()
    return weights, {kind: _write_graph(trace.graph, paths[kind]) for kind, trace in graphs.items()}


class WeightsFile:
    """The one file that several graphs take their weights from. Equal tensors, tied or not, are stored once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._places: dict[tuple[str, bytes], _Place] = {}

    def take(self, trace: Trace) -> None:
        """Write the weights of `trace`; its graph's initializers point at this file afterwards."""
        for name, tensor in trace.weights.items():
            place = self._add(tensor.contiguous())
            trace.graph.graph.initializers[name].const_value = ir.ExternalTensor(
                location=self.path.name,
                offset=place.offset,
                length=place.length,
                dtype=IR_DTYPES[tensor.dtype],
                shape=ir.Shape(tensor.shape),
                name=name,
                base_dir=self.path.parent,
            )

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


def _keep_inside(trace: Trace) -> None:
    """Give the graph its weights back, to be written as one file with it."""
    for name, tensor in trace.weights.items():
        value = ir.tensor_adapters.TorchTensor(tensor.contiguous(), name=name)
        trace.graph.graph.initializers[name].const_value = value


def write_tokenizer(tokenizer: Travelling, folder: Path) -> TokenizerEntry:
    """Write a tokenizer's file, if it has one, and say what travels."""
    if tokenizer.file is None:
        return TokenizerEntry(name=tokenizer.name)
    write_file(folder / tokenizer.file, tokenizer.data)
    sha256 = hashlib.sha256(tokenizer.data).hexdigest()
    return TokenizerEntry(
        name=tokenizer.name, file=FileEntry(file=tokenizer.file, bytes=len(tokenizer.data), sha256=sha256)
    )


def _write_graph(graph: ir.Model, path: Path) -> FileEntry:
    data = ir.to_proto(graph).SerializeToString(deterministic=True)
    write_file(path, data)
    return FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
