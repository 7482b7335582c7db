"""Weights and graphs to bytes on disk: each weight once."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir
import torch

from gptexport.staging import write_file
from gptexport.tokenizers import BundledTokenizer
from gptexport_runtime.contract.manifest import TokenizerEntry
from gptexport_runtime.contract.model import FileEntry
from gptexport_runtime.contract.names import META_WEIGHTS
from gptexport_runtime.contract.seal import seal

VIEW = "view"  # in the `meta` of an initializer: the name of the weight whose bytes it is, in another type
PAGE = 4096  # external data that begins on a page can be memory-mapped (onnx.proto, TensorProto.external_data)


class Weights(Protocol):
    """Where the weights of several graphs go."""

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the weights in the file, once it is closed; None where they go inside the graphs."""
        ...

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Store these, by the name of their initializer."""
        ...

    def attach(self, graph: ir.Graph) -> None:
        """Let the initializers of a graph, which have no value, read what is stored."""
        ...

    def close(self) -> FileEntry | None:
        """Flush to the disk. Returns: what was written; None where the weights go inside the graphs."""
        ...


@dataclass(frozen=True)
class _Span:
    """Where in the file a tensor lies, in bytes."""

    offset: int
    length: int


class WeightsFile:
    """One file that several graphs take their weights from. Equal tensors, tied or not, are stored once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self._spans: dict[tuple[str, bytes], _Span] = {}
        self._stored: dict[str, ir.ExternalTensor] = {}
        self.sha256: str | None = None

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            span = self._add(tensor.contiguous())
            self._stored[name] = ir.ExternalTensor(
                location=self.path.name,
                offset=span.offset,
                length=span.length,
                dtype=ir.tensor_adapters.from_torch_dtype(tensor.dtype),
                shape=ir.Shape(tensor.shape),
                name=name,
                base_dir=self.path.parent,
            )

    def attach(self, graph: ir.Graph) -> None:
        for name, value in graph.initializers.items():
            if value.const_value is None:
                stored = self._stored[value.meta.get(VIEW, name)]
                value.const_value = _seen_as(stored, value) if VIEW in value.meta else stored

    def close(self) -> FileEntry:
        self.sha256 = self._hash.hexdigest()
        self._write(seal(self.sha256))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(file=self.path.name, bytes=self._size, sha256=self._hash.hexdigest())

    def _add(self, tensor: torch.Tensor) -> _Span:
        data = _bytes_of(tensor)
        key = (str(tensor.dtype), hashlib.sha256(data).digest())
        if key not in self._spans:
            self._write(b"\0" * (-self._size % PAGE))
            self._spans[key] = _Span(self._size, len(data))
            self._write(data)
        return self._spans[key]

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)


class InlineWeights:
    """The weights go inside each graph's own file."""

    sha256 = None

    def __init__(self) -> None:
        self._stored: dict[str, torch.Tensor] = {}

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._stored |= {name: tensor.contiguous() for name, tensor in weights.items()}

    def attach(self, graph: ir.Graph) -> None:
        for name, value in graph.initializers.items():
            if value.const_value is None:
                stored = self._stored[value.meta.get(VIEW, name)]
                if VIEW in value.meta:
                    value.const_value = _packed(stored, value)
                else:
                    value.const_value = ir.tensor_adapters.TorchTensor(stored, name=name)

    def close(self) -> None:
        return None


def view_of(graph: ir.Graph, weight: str, dtype: ir.DataType, shape: list[int]) -> ir.Value:
    """The bytes of a weight, by its name, as an initializer of another type and shape. They are stored once."""
    name = f"{weight}.{dtype.name.lower()}"
    if name not in graph.initializers:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        value.meta[VIEW] = weight
        graph.initializers[name] = value
    return graph.initializers[name]


def _seen_as(stored: ir.ExternalTensor, value: ir.Value) -> ir.ExternalTensor:
    assert value.dtype is not None and value.shape is not None
    return ir.ExternalTensor(
        location=stored.location,
        offset=stored.offset,
        length=stored.length,
        dtype=value.dtype,
        shape=value.shape,
        name=value.name or "",
        base_dir=stored.base_dir,
    )


def _packed(stored: torch.Tensor, value: ir.Value) -> ir.TensorProtocol:
    assert value.dtype is not None and value.shape is not None
    numbers = stored.numpy().reshape(-1)
    if value.dtype.bitwidth < 8:
        return ir.PackedTensor(numbers, value.dtype, shape=value.shape, name=value.name)
    return ir.Tensor(numbers.reshape(value.shape.numpy()), name=value.name)


def write_graph(model: ir.Model, weights: Weights, path: Path) -> FileEntry:
    """Write a graph whose weights are stored in `weights`, which is closed."""
    weights.attach(model.graph)
    if weights.sha256 is not None:
        model.metadata_props[META_WEIGHTS] = weights.sha256
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    write_file(path, data)
    return FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy. Not through numpy, which has no bfloat16."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def write_tokenizer(tokenizer: BundledTokenizer, folder: Path) -> TokenizerEntry:
    """Write a tokenizer's file, if it has one, and return its entry in the manifest."""
    if tokenizer.file is None:
        return TokenizerEntry(name=tokenizer.name)
    write_file(folder / tokenizer.file, tokenizer.data)
    sha256 = hashlib.sha256(tokenizer.data).hexdigest()
    return TokenizerEntry(
        name=tokenizer.name, file=FileEntry(file=tokenizer.file, bytes=len(tokenizer.data), sha256=sha256)
    )
