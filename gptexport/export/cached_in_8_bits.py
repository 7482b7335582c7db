"""Keys and values of a cached step in 8 bits: a third way to write and read a cache, beside those of `cached`.

Each channel of each head has one scale (`Scales`), found before on text. GroupQueryAttention reads and writes such a
cache itself (onnxruntime#28576), and is faster the more a row holds. But many tokens at once it attends to slowly, a
third as fast as in float32: so a prompt attends in float32, and what it adds to the cache is rounded as it is written.
Seen of ONNX Runtime 1.31.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.attention import Attention
from gptexport.export.cached import Attend, CachedLayer, CachedStep, CacheIndices, Lengths
from gptexport.export.irtools import MICROSOFT, constant, number_like
from gptexport.export.rewrites.group_query_attention import (
    OP_TYPE,
    attributes_of,
    side_by_side,
    take_result,
    takes,
)

Scales = Mapping[str, NDArray[np.float32]]  # by the name of the cache's input: (n_kv_head, head_size)

LARGEST, SMALLEST = 127, -128  # of int8
MANY = 16  # new tokens from which attention in float32 is faster, though what is held must be widened for it
IN_8_BITS: dict[str, int | str] = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}
BETWEEN = [None] * 5  # inputs of the operator that lie before its scales, none of which is given


def attend_in_8_bits(lengths: Lengths, scales: Scales) -> Attend:
    """GroupQueryAttention over a cache in 8 bits.

    Raises (when it is called):
        ExportError: a layer's attention is not one that the operator computes, or something else is kept beside keys
            and values.
    """

    def attend(step: CachedStep, layer: CachedLayer) -> None:
        attention, names = layer.attention, [value.name or "" for value in (layer.past_key, layer.past_value)]
        if not takes(attention):
            raise ExportError(f"ONNX Runtime's {OP_TYPE} does not compute its attention, and no other reads 8 bits")
        if any(name not in scales for name in names):
            raise ExportError("it keeps more than keys and values of each token")
        for value in (layer.past_key, layer.past_value, layer.present_key, layer.present_value):
            value.type = ir.TensorType(ir.DataType.INT8)
        stored = [_stored(step.graph, f"{name}.scale", scales[name]) for name in names]
        layers = _Layer(step, layer, stored, *side_by_side(attention), lengths)
        chosen = ir.node(
            "If",
            [step.shared(_is_many)],
            {"then_branch": layers.in_float32(), "else_branch": layers.in_8_bits()},
            outputs=[ir.Value(), layer.present_key, layer.present_value],
        )
        step.graph.insert_before(attention.node, chosen)
        step.graph.opset_imports[MICROSOFT] = 1
        result, out = chosen.outputs[0], layers.out
        result.type, result.shape = out.type, out.shape
        take_result(attention, result, out)
        step.count(OP_TYPE, achieved=True)

    return attend


class _Layer:
    """The two branches of one layer. Each gives the attention's result, and the cache with its new keys and values."""

    def __init__(
        self,
        step: CachedStep,
        layer: CachedLayer,
        scales: list[ir.Value],
        inputs: list[ir.Value | None],
        out: ir.Value,
        lengths: Lengths,
    ) -> None:
        self.out = out
        self._inputs = inputs
        self._attention: Attention = layer.attention
        self._pasts = (layer.past_key, layer.past_value)
        self._scales = scales
        self._lengths = step.shared(lengths)
        self._held = step.shared(_held)
        self._indices = step.shared(CacheIndices(layer.attention.n_kv_head))

    def in_8_bits(self) -> ir.Graph:
        """The operator reads and writes 8 bits."""
        inputs = [*self._inputs, *self._pasts, *self._lengths, *BETWEEN, *self._scales]
        attributes: dict[str, int | float | str] = {**attributes_of(self._attention), **IN_8_BITS}
        node = ir.node(OP_TYPE, inputs, attributes, domain=MICROSOFT, num_outputs=3)
        return self._branch([node], node.outputs, "step")

    def in_float32(self) -> ir.Graph:
        """What is held is widened, and what is new is rounded and written behind it. Several rows hold nothing yet."""
        tape = Tape()
        none, all_ = constant(tape, [0]), constant(tape, [2**62])
        axis = constant(tape, [2])
        wide = []
        for past, scale in zip(self._pasts, self._scales, strict=True):
            held = tape.op("Slice", [past, none, self._held, axis])
            wide.append(tape.op("Mul", [tape.op("Cast", [held], {"to": ir.DataType.FLOAT}), scale]))
        node = ir.node(
            OP_TYPE,
            [*self._inputs, *wide, *self._lengths],
            attributes_of(self._attention),
            domain=MICROSOFT,
            num_outputs=3,
        )
        result, *presents = node.outputs
        after = Tape()
        bounds = [number_like(after, bound, ir.DataType.FLOAT) for bound in (SMALLEST, LARGEST)]
        written = []
        for present, past, scale in zip(presents, self._pasts, self._scales, strict=True):
            new = after.op("Slice", [present, self._held, all_, axis])
            whole = after.op("Clip", [after.op("Round", [after.op("Div", [new, scale])]), *bounds])
            rounded = after.op("Cast", [whole], {"to": ir.DataType.INT8})
            written.append(after.op("ScatterND", [past, self._indices, rounded]))
        return self._branch([*tape.nodes, node, *after.nodes], [result, *written], "prompt")

    def _branch(self, nodes: list[ir.Node], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        whole = f"{self.out.name}.{name}"
        for number, value in enumerate(value for node in nodes for value in node.outputs):
            value.name = f"{whole}.{number}"  # unlike any outside, which a branch may not repeat
        result, *presents = outputs
        result.type, result.shape = self.out.type, self.out.shape
        for value, past in zip(presents, self._pasts, strict=True):
            value.type, value.shape = past.type, past.shape
        return ir.Graph([], list(outputs), nodes=nodes, name=whole)


def _stored(graph: ir.Graph, name: str, scale: NDArray[np.float32]) -> ir.Value:
    """A scale (1, n_kv_head, 1, head_size), which is small and stays in the graph."""
    numbers = scale[None, :, None, :].astype(np.float32)
    tensor = ir.tensor(numbers, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor)
    graph.initializers[name] = value
    return value


def _is_many(step: CachedStep, tape: Tape) -> ir.Value:
    return tape.op("GreaterOrEqual", [tape.op("Squeeze", [step.T]), constant(tape, MANY)])


def _held(step: CachedStep, tape: Tape) -> ir.Value:
    """(1): how many tokens the cache holds: of the one row, or 0, where several come with many tokens each."""
    return tape.op("ReduceMax", [step.past_lengths], {"keepdims": 1})
