"""A graph without a manifest: in which precision it computes, from the weights that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

PRECISIONS = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
}
QUANTIZED = ("int8", "int4")


@dataclass(frozen=True)
class Precision:
    """`dtype` of the arithmetic, and how the weights are quantized, if they are."""

    dtype: str
    quantize: str | None


def precision_of(graph: Path) -> Precision:
    """That of most of the weights; quantized ones are computed with in float32."""
    model = onnx.load(str(graph), load_external_data=False)
    sizes = dict.fromkeys(PRECISIONS.values(), 0)
    for tensor in model.graph.initializer:
        if tensor.data_type in PRECISIONS:
            sizes[PRECISIONS[tensor.data_type]] += prod(tensor.dims)
    most = max(sizes, key=lambda name: sizes[name])
    return Precision("float32", most) if most in QUANTIZED else Precision(most, None)
