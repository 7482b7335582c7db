"""A single .onnx file, which knows little of itself: its limits, and its precision by the weights that it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import onnx

from gptexport.artifacts.artifact import Device, Inspection, Shape, Stage
from gptexport.engine.graph_file import limits_of, read_graph
from gptexport.precision import Precision, most_common
from gptexport_runtime.contract.heads import LOGITS, Head

Axes = dict[str, list[str | int]]
INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@dataclass(frozen=True, kw_only=True)
class GraphInfo:
    """An .onnx file. Axes: a name is dynamic, a number is fixed."""

    file: str
    bytes: int  # of the graph, without external data
    opset: dict[str, int]  # version by domain; "" is ONNX's own
    producer: str
    inputs: Axes
    outputs: Axes
    nodes: dict[str, int]  # how many of each operator
    parameters: int
    external_data: list[str]  # files it reads its weights from
    block_size: int | None
    vocab_size: int | None


@dataclass(frozen=True)
class SingleGraph:
    """A graph outside of a bundle."""

    path: Path
    precision: Precision
    kind = "graph"
    device: Device = "cpu"
    stages = (Stage.GRAPH, Stage.ONNX_RUNTIME)
    heads: tuple[Head, ...] = (LOGITS,)
    model: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[Stage, Sequence[str]] = field(default_factory=dict)
    limits = None

    @property
    def graph(self) -> Path:
        return self.path

    def accepts(self, B: int, T: int) -> bool:
        return True

    def fit(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes)

    def built_from(self, given: Path) -> None:
        """A graph is what was exported."""

    def facts(self) -> dict[str, Any]:
        return {}

    def certify(self, verdict: Mapping[str, Any]) -> None:
        """Nowhere: nothing but the graph is there."""

    def inspect(self, *, verify: bool = False) -> Inspection:
        return Inspection(data=asdict(inspect_graph(self.path)), problems=())


def open_graph(path: Path) -> SingleGraph:
    """Read an .onnx file's structure, not its weights.

    Raises:
        ArtifactError: it is not ONNX.
    """
    model = read_graph(path)
    return SingleGraph(path, most_common(_weights(model.graph)))


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[int, int]]:
    """Of each initializer its type and how many numbers it holds.

    Bytes that nodes read as 4 bits each are two; those that have no scale for each block of inputs are like INT8.
    """
    in_4_bits, in_blocks = (
        {
            name
            for node in graph.node
            if any(attribute.name == key and attribute.i in values for attribute in node.attribute)
            for name in node.input
        }
        for key, values in (("bits", {4}), ("block_size", range(1, 2**31)))
    )
    for tensor in graph.initializer:
        is_bytes = tensor.data_type == onnx.TensorProto.UINT8
        if is_bytes and tensor.name in in_4_bits:
            yield onnx.TensorProto.UINT4, 2 * prod(tensor.dims)
        elif is_bytes and tensor.name not in in_blocks:
            yield onnx.TensorProto.INT8, prod(tensor.dims)
        else:
            yield tensor.data_type, prod(tensor.dims)


def inspect_graph(path: Path) -> GraphInfo:
    """What is in an .onnx file. Raises as `open_graph`."""
    model = read_graph(path)
    weights = [t for t in model.graph.initializer if t.data_type not in INTEGERS]
    block_size, vocab_size = limits_of(model, path)
    return GraphInfo(
        file=path.name,
        bytes=path.stat().st_size,
        opset={_text(entry.domain): entry.version for entry in model.opset_import},
        producer=f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
        inputs=_axes(model.graph.input),
        outputs=_axes(model.graph.output),
        nodes=dict(Counter(_text(node.op_type) for node in model.graph.node).most_common()),
        parameters=sum(prod(t.dims) for t in weights),
        external_data=sorted({_text(e.value) for t in weights for e in t.external_data if e.key == "location"}),
        block_size=block_size,
        vocab_size=vocab_size,
    )


def _axes(values: Iterable[onnx.ValueInfoProto]) -> Axes:
    return {
        _text(value.name): [_text(dim.dim_param) or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def _text(value: str | bytes) -> str:
    """A string of the file, which protobuf gives as bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
