"""How a cached step attends: the values that all layers share, and the two ways to write and read a cache.

A target chooses one (`Target.attend`): `scatter_and_mask` is plain ONNX and runs anywhere; `group_query_attention` is
ONNX Runtime's fused operator, which writes into the cache itself and reads no further than a row has tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.attention import OP_TYPE, Attention
from gptexport.export.irtools import MICROSOFT, constant, size_of
from gptexport.export.masks import Mask, evaluate_mask, window_of
from gptexport.export.rewrites import Audit
from gptexport.export.rewrites.group_query_attention import OP_TYPE as GROUP_QUERY_ATTENTION
from gptexport.export.rewrites.group_query_attention import attributes_of, side_by_side, take_result, takes
from gptexport.export.rewrites.positions import LARGEST_TABLE
from gptexport.export.sizes import Sizes
from gptexport.export.trace import Trace

T_ = TypeVar("T_")


Visible = Callable[["CachedStep", Tape], ir.Value]  # makes the mask (B,1,T,S): what of the cache each new token sees


@dataclass(frozen=True, eq=False)
class LayerCache:
    """What a layer keeps of each token, before and after the step: each (B,n_kv_head,S,head_size)."""

    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value


@dataclass(frozen=True, eq=False)
class CachedLayer(LayerCache):
    """One layer's attention, and its cache."""

    attention: Attention
    visible: Visible


class CachedStep:
    """What the layers of one `decode` graph share. Values are made when first asked for, in front of all layers."""

    def __init__(self, graph: ir.Graph, past_lengths: ir.Value) -> None:
        self.graph = graph
        self.past_lengths = past_lengths  # (B)
        self.audit: Audit = {}
        self._tape = Tape()
        self.T = size_of(self._tape, graph.inputs[0], 1)  # (1): how many tokens come
        count = [constant(self._tape, 0), self._tape.op("Squeeze", [self.T]), constant(self._tape, 1)]
        offsets = self._tape.op("Range", count)
        rows = self._tape.op("Unsqueeze", [past_lengths, constant(self._tape, [1])])
        self.positions = self._tape.op("Add", [rows, offsets])  # (B,T): where in its row each new token stands
        self._made: dict[object, object] = {}
        self._last: ir.Node | None = None

    def begin(self, layers: Sequence[LayerCache]) -> None:
        """Put the positions into the graph; past_lengths and the layers' caches become its inputs."""
        self.graph.inputs.append(self.past_lengths)
        self.graph.inputs.extend(value for layer in layers for value in (layer.past_key, layer.past_value))
        self._insert(self._tape)
        self.past_key = layers[0].past_key  # (B,n_kv_head,S,head_size): all have the same B and S

    def shared(self, make: Callable[[CachedStep, Tape], T_]) -> T_:
        """What `make` puts on a tape, made once and for every layer."""
        if make not in self._made:
            tape = Tape()
            self._made[make] = make(self, tape)
            self._insert(tape)
        return self._made[make]  # type: ignore[return-value]  # by `make`, whose result it is

    def count(self, operator: str, *, achieved: bool) -> None:
        """Note in the audit that a layer was to become `operator`, and whether it has."""
        row = self.audit.setdefault(operator, {"expected": 0, "achieved": 0})
        row["expected"] += 1
        row["achieved"] += achieved

    def _insert(self, tape: Tape) -> None:
        nodes = list(tape.nodes)
        if not nodes:
            return
        if self._last is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(self._last, nodes)
        self._last = nodes[-1]


Attend = Callable[[CachedStep, CachedLayer], None]
Lengths = Callable[[CachedStep, Tape], tuple[ir.Value, ir.Value]]


def scatter_and_mask(step: CachedStep, layer: CachedLayer) -> None:
    """ScatterND writes the new keys and values; Attention reads all of the cache, under a mask.

    ScatterND writes into its input where a session binds input and output to the same memory.
    """
    graph, attention = step.graph, layer.attention
    mask, indices = step.shared(layer.visible), step.shared(CacheIndices(attention.n_kv_head))
    node = attention.node
    for past, new, present in (
        (layer.past_key, attention.key, layer.present_key),
        (layer.past_value, attention.value, layer.present_value),
    ):
        graph.insert_before(node, ir.node("ScatterND", [past, indices, new], outputs=[present]))
    attributes = [value for name, value in node.attributes.items() if name != "is_causal"]
    inputs = [attention.query, layer.present_key, layer.present_value, mask]
    masked = ir.Node("", OP_TYPE, inputs, attributes, num_outputs=1)
    graph.insert_before(node, masked)
    old, new = node.outputs[0], masked.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    old.replace_all_uses_with(new)
    graph.remove(node, safe=True)


def group_query_attention(lengths: Lengths) -> Attend:
    """GroupQueryAttention, where its kernel computes the attention; else `scatter_and_mask`.

    It takes several tokens a row only for rows that are all empty, or for a single row.

    Args:
        lengths: makes the operator's seqlens_k (B) and total_sequence_length, as a provider's kernel wants them.
    """

    def attend(step: CachedStep, layer: CachedLayer) -> None:
        attention = layer.attention
        if not takes(attention):
            scatter_and_mask(step, layer)
            return
        inputs, out = side_by_side(attention)
        result = ir.Value(type=out.type, shape=out.shape)
        fused = ir.node(
            GROUP_QUERY_ATTENTION,
            [*inputs, layer.past_key, layer.past_value, *step.shared(lengths)],
            attributes_of(attention),
            domain=MICROSOFT,
            outputs=[result, layer.present_key, layer.present_value],
        )
        step.graph.insert_before(attention.node, fused)
        step.graph.opset_imports[MICROSOFT] = 1
        take_result(attention, result, out)
        step.count(GROUP_QUERY_ATTENTION, achieved=True)

    return attend


@dataclass(frozen=True)
class CacheIndices:
    """(B,n_kv_head,T,3): where in the cache the key of each head and token goes: row, head, position."""

    n_kv_head: int

    def __call__(self, step: CachedStep, tape: Tape) -> ir.Value:
        B = size_of(tape, step.positions, 0)
        shape = tape.op("Concat", [B, constant(tape, [self.n_kv_head]), step.T, constant(tape, [1])], {"axis": 0})
        row = tape.op("Range", [constant(tape, 0), tape.op("Squeeze", [B]), constant(tape, 1)])
        head = tape.op("Constant", [], {"value": ir.tensor(np.arange(self.n_kv_head).reshape(1, -1, 1, 1))})
        parts = [
            tape.op("Unsqueeze", [row, constant(tape, [1, 2, 3])]),
            head,
            tape.op("Unsqueeze", [step.positions, constant(tape, [1, 3])]),
        ]
        return tape.op("Concat", [tape.op("Expand", [part, shape]) for part in parts], {"axis": 3})


def up_to_its_own(step: CachedStep, tape: Tape) -> ir.Value:
    """(B,1,T,S) bool: a token attends to the cache's positions up to its own."""
    return tape.op("LessOrEqual", [_held(step, tape), _own(step, tape)])


@dataclass(frozen=True)
class Within:
    """(B,1,T,S) bool: of those, to the last `window`, its own among them."""

    window: int

    def __call__(self, step: CachedStep, tape: Tape) -> ir.Value:
        held, own = _held(step, tape), _own(step, tape)
        first = tape.op("Sub", [own, constant(tape, self.window - 1)])
        return tape.op("And", [tape.op("LessOrEqual", [held, own]), tape.op("GreaterOrEqual", [held, first])])


@dataclass(frozen=True, eq=False)
class FromTable:
    """(B,1 or n_head,T,S): the rows of a mask (n,block_size,block_size) at the tokens' positions, as far as S."""

    table: ir.Value

    def __call__(self, step: CachedStep, tape: Tape) -> ir.Value:
        by_position = tape.op("Transpose", [self.table], {"perm": [1, 0, 2]})  # (block_size,n,block_size)
        rows = tape.op("Gather", [by_position, step.positions])  # (B,T,n,block_size)
        turned = tape.op("Transpose", [rows], {"perm": [0, 2, 1, 3]})
        S = size_of(tape, step.past_key, 2)
        return tape.op("Slice", [turned, constant(tape, [0]), S, constant(tape, [3])])


def attends(trace: Trace, sizes: Sizes, attention: Attention, block_size: int) -> Visible:
    """What of the cache a token of this attention sees.

    Raises:
        ExportError: later tokens, or its mask depends on tokens.
    """
    if any(attention.node.inputs[4:]):
        raise ExportError("attention has a cache of its own")
    value = attention.node.inputs[3] if len(attention.node.inputs) > 3 else None
    if value is None:
        if not attention.causal:
            raise ExportError("attention sees later tokens: it is not causal")
        return up_to_its_own
    mask = evaluate_mask(sizes, value, block_size)
    if mask.looks_ahead and not attention.causal:
        raise ExportError("attention sees later tokens: its mask is not causal")
    seen = mask.visible & np.tri(block_size, dtype=bool)  # (...,block_size,block_size)
    weighs = mask.values.dtype != np.bool_ and bool(mask.values[seen].any())
    one = seen.size == block_size**2
    if one and not weighs and (window := window_of(seen.reshape(block_size, block_size))) is not None:
        return Within(window) if window < block_size else up_to_its_own
    return FromTable(_store(trace, value, mask, seen, attention.query))


def _store(trace: Trace, value: ir.Value, mask: Mask, seen: NDArray[np.bool_], query: ir.Value) -> ir.Value:
    """The mask as a weight (n,block_size,block_size), with what lies ahead hidden; if added, of queries' dtype."""
    name = f"{value.name}.table"
    if name not in trace.graph.initializers:
        hidden = seen if mask.values.dtype == np.bool_ else np.where(seen, mask.values, np.finfo(np.float32).min)
        table = hidden.reshape(-1, *hidden.shape[-2:])
        if table.nbytes > LARGEST_TABLE:
            raise ExportError(f"a mask takes {table.nbytes / 1e6:,.0f} MB as a table; expected at most 64")
        stored = torch.from_numpy(table)
        if table.dtype != np.bool_:
            assert query.dtype is not None
            dtype = ir.tensor_adapters.to_torch_dtype(query.dtype)
            stored = stored.clamp(min=torch.finfo(dtype).min).to(dtype)
        kind = query.type if table.dtype != np.bool_ else ir.TensorType(ir.DataType.BOOL)
        trace.weights[name] = stored
        trace.graph.initializers[name] = ir.Value(name=name, type=kind, shape=ir.Shape(table.shape))
    return trace.graph.initializers[name]


def _held(step: CachedStep, tape: Tape) -> ir.Value:
    """(S): the cache's positions."""
    S = tape.op("Squeeze", [size_of(tape, step.past_key, 2)])
    return tape.op("Range", [constant(tape, 0), S, constant(tape, 1)])


def _own(step: CachedStep, tape: Tape) -> ir.Value:
    """(B,1,T,1): the new tokens' own."""
    return tape.op("Unsqueeze", [step.positions, constant(tape, [1, 3])])


def lengths_of_rows(step: CachedStep, tape: Tape) -> tuple[ir.Value, ir.Value]:
    """For the CPU's kernel: each row's tokens less one, and the most of any row."""
    lengths = tape.op("Cast", [tape.op("Add", [step.past_lengths, step.T])], {"to": ir.DataType.INT32})
    seqlens = tape.op("Sub", [lengths, constant(tape, [1], ir.DataType.INT32)])
    return seqlens, tape.op("ReduceMax", [lengths], {"keepdims": 0})


def lengths_on_the_device(step: CachedStep, tape: Tape) -> tuple[ir.Value, ir.Value]:
    """For CUDA's kernel: each row's tokens less one, and a bound of total_sequence_length made of shapes alone.

    The kernel reads total_sequence_length on the host, and each row's own length on the device. Computed from the
    lengths, the bound would have to be copied back at every step, which waits for the GPU and rules out CUDA graphs; so
    it is made of shapes, which the host knows: the cache's capacity. Only where several rows come with several tokens
    each, which the kernel takes when all of them are empty, it must be told T, by which it knows that they are.

    And seqlens_k is the position of a row's last token, not its length plus T less one: of a sum with a shape, ONNX
    Runtime would compute all on the host.
    """
    B, S = size_of(tape, step.graph.inputs[0], 0), size_of(tape, step.past_key, 2)
    one = constant(tape, [1])
    last = tape.op("Gather", [step.positions, constant(tape, -1)], {"axis": 1})
    seqlens = tape.op("Cast", [last], {"to": ir.DataType.INT32})
    prompts = tape.op("And", [tape.op("Greater", [step.T, one]), tape.op("Greater", [B, one])])
    total = tape.op("Squeeze", [tape.op("Where", [prompts, step.T, S])])
    return seqlens, tape.op("Cast", [total], {"to": ir.DataType.INT32})
