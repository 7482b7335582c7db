"""The graph that generates: new tokens and a cache in, the last position's logits and the cache out.

Made from the graph `last` by three changes: a token's position counts from what its row has in the cache; keys and
values are written into the cache where they belong; queries attend to the whole cache, as far as their own position.
One graph serves the prompt (T tokens, an empty cache) and the single step (T = 1).

Nothing here copies the cache: ScatterND writes into its input where a session binds input and output to the same
memory (the runtime does), which is how ONNX Runtime's kernels that are updated in place work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.heads import last_graph
from gptexport.export.positions import check_counted, count_from
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import AXIS_B, AXIS_S, PAST_LENGTHS, past_names, present_names

# What may stand between two attentions: it treats every position alike. Anything else may look at T, and would see the
# new tokens alone.
POSITIONWISE = {
    "Add",
    "Attention",
    "Cast",
    "Concat",
    "Constant",
    "Div",
    "DynamicQuantizeMatMul",
    "Erf",
    "Gather",
    "GatherND",
    "Gelu",
    "Identity",
    "LayerNormalization",
    "MatMul",
    "Mul",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
}


def decode_graph(logits: Trace) -> Trace:
    """input_ids (B,T), lengths (B), past_lengths (B) int64 and the cache -> logits (B,V) of each row's last new token.

    Row b's tokens get the positions past_lengths[b] ... past_lengths[b] + T - 1, all of which must be below the
    cache's capacity S. What padding leaves in the cache lies past the row's end, is never attended to, and is
    overwritten by the tokens to come.

    Raises:
        ExportError: the forward is not like GPT-2's: causal attention, positions from a table, and a linear head.
    """
    trace = last_graph(logits)
    model = trace.graph
    graph = model.graph
    graph.name = "decode"
    past_lengths = ir.Value(name=PAST_LENGTHS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([AXIS_B]))
    tape = Tape()
    T = tape.op("Shape", [graph.inputs[0]], {"start": 1, "end": 2})
    offsets = tape.op("Range", [_scalar(tape, 0), tape.op("Squeeze", [T]), _scalar(tape, 1)])
    positions = tape.op("Add", [tape.op("Unsqueeze", [past_lengths, _vector(tape, [1])]), offsets])  # (B,T)
    count_from(graph, positions)
    RemoveUnusedNodesPass()(model)
    check_counted(graph)
    attentions = _attentions(graph)

    graph.inputs.append(past_lengths)
    caches = [_cache(layer, attention) for layer, attention in enumerate(attentions)]
    graph.inputs.extend(value for past, _ in caches for value in past)
    mask, places = _mask(tape, positions, caches[0][0][0]), _places(tape, positions, T, attentions[0])
    graph.insert_before(graph[0], tape.nodes)
    for attention, (past, present) in zip(attentions, caches, strict=True):
        _attend_to_cache(attention, past, present, mask, places)
    graph.outputs.extend(value for _, present in caches for value in present)
    RemoveUnusedNodesPass()(model)
    return trace


def _attentions(graph: ir.Graph) -> list[ir.Node]:
    """Every attention, in the order of the layers.

    Raises:
        ExportError: one is not causal over what the forward got, or another operation may look across positions.
    """
    other = sorted({node.op_type for node in graph} - POSITIONWISE)
    attentions = [node for node in graph if node.op_type == "Attention"]
    plain = all(node.attributes.get_int("is_causal", 0) == 1 and not any(node.inputs[3:]) for node in attentions)
    if other or not attentions or not plain:
        found = ", ".join(other) if plain else "attention with a mask, or that is not causal"
        if not attentions:
            found = "no scaled_dot_product_attention that the opset, 23 or later, keeps whole"
        raise ExportError(
            f"the forward has {found}; expected scaled_dot_product_attention(is_causal=True), and nothing else that "
            "looks across positions"
        )
    return attentions


def _cache(layer: int, attention: ir.Node) -> tuple[list[ir.Value], list[ir.Value]]:
    """A layer's past and present keys and values, each (B, n_head, S, head_size)."""
    key = attention.inputs[1]
    assert key is not None and key.shape is not None
    _, heads, _, size = key.shape  # (B, n_head, T, head_size)
    shape = ir.Shape([AXIS_B, heads, AXIS_S, size])
    past, present = (
        [ir.Value(name=name, type=key.type, shape=shape) for name in names]
        for names in (past_names(layer), present_names(layer))
    )
    return past, present


def _mask(tape: Tape, positions: ir.Value, past_key: ir.Value) -> ir.Value:
    """(B,1,T,S) bool: a token attends to the cache's places up to its own."""
    S = tape.op("Squeeze", [tape.op("Shape", [past_key], {"start": 2, "end": 3})])
    places = tape.op("Range", [_scalar(tape, 0), S, _scalar(tape, 1)])
    return tape.op("LessOrEqual", [places, tape.op("Unsqueeze", [positions, _vector(tape, [1, 3])])])


def _places(tape: Tape, positions: ir.Value, T: ir.Value, attention: ir.Node) -> ir.Value:
    """(B,n_head,T,3): where in the cache each head's key goes: row, head, position."""
    key = attention.inputs[1]
    assert key is not None and key.shape is not None and isinstance(key.shape[1], int)
    heads = key.shape[1]
    B = tape.op("Shape", [positions], {"start": 0, "end": 1})
    shape = tape.op("Concat", [B, _vector(tape, [heads]), T, _vector(tape, [1])], {"axis": 0})
    row = tape.op("Range", [_scalar(tape, 0), tape.op("Squeeze", [B]), _scalar(tape, 1)])
    head = tape.op("Constant", [], {"value": ir.tensor(np.arange(heads).reshape(1, heads, 1, 1))})
    parts = [
        tape.op("Unsqueeze", [row, _vector(tape, [1, 2, 3])]),
        head,
        tape.op("Unsqueeze", [positions, _vector(tape, [1, 3])]),
    ]
    return tape.op("Concat", [tape.op("Expand", [part, shape]) for part in parts], {"axis": 3})


def _attend_to_cache(
    attention: ir.Node, past: Sequence[ir.Value], present: Sequence[ir.Value], mask: ir.Value, places: ir.Value
) -> None:
    graph = attention.graph
    assert graph is not None
    for index, before, after in zip((1, 2), past, present, strict=True):
        graph.insert_before(attention, ir.node("ScatterND", [before, places, attention.inputs[index]], outputs=[after]))
        attention.replace_input_with(index, after)
    attributes = {name: value for name, value in attention.attributes.items() if name != "is_causal"}
    masked = ir.Node("", "Attention", [*attention.inputs[:3], mask], attributes.values(), num_outputs=1)
    graph.insert_before(attention, masked)
    old, new = attention.outputs[0], masked.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    old.replace_all_uses_with(new)
    graph.remove(attention, safe=True)


def _scalar(tape: Tape, value: int) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.int64))})


def _vector(tape: Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(values, np.int64))})
