"""The head `decode`, which generates: new tokens and a cache in, the last position's logits and the cache out.

Made from the graph `last` by three changes: a token's position counts from what its row has in the cache; keys and
values are written into the cache where they belong; queries attend to the whole cache, as far as their own position.
How the last two are done is the target's to say (`Target.attend`). One graph serves the prompt (T tokens, an empty
cache) and the single step (T = 1). Nothing here copies the cache: a session binds input and output to the same memory.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gptexport.errors import ExportError
from gptexport.export.attention import Attention, attentions
from gptexport.export.cached import CachedLayer, CachedStep
from gptexport.export.heads import last
from gptexport.export.rewrites.positions import check_counted, count_from
from gptexport.export.trace import Trace
from gptexport.recipe import Recipe
from gptexport_runtime.contract import heads
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


def build(logits: Trace, recipe: Recipe) -> Trace:
    """input_ids (B,T), lengths (B), past_lengths (B) int64 and the cache -> logits (B,V) of each row's last new token.

    Row b's tokens get the positions past_lengths[b] ... past_lengths[b] + T - 1, all of which must be below the
    cache's capacity S. What padding leaves in the cache lies past the row's end, is never attended to, and is
    overwritten by the tokens to come.

    Raises:
        ExportError: the forward has something else than causal attention, positions from a table, and a linear head.
    """
    trace = last.build(logits, recipe, heads.DECODE)
    graph = trace.graph
    past_lengths = ir.Value(name=PAST_LENGTHS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([AXIS_B]))
    step = CachedStep(graph, past_lengths)
    count_from(graph, step.positions)
    RemoveUnusedNodesPass()(trace.model)
    check_counted(graph)
    found = _causal_attentions(graph)

    layers = [_layer(number, attention) for number, attention in enumerate(found)]
    step.begin(layers)
    attend = recipe.target.attend(recipe.precision)
    for layer in layers:
        attend(step, layer)
    graph.outputs.extend(value for layer in layers for value in (layer.present_key, layer.present_value))
    RemoveUnusedNodesPass()(trace.model)
    trace.audit.update(step.audit)
    return trace


def _causal_attentions(graph: ir.Graph) -> list[Attention]:
    """Every attention, in the order of the layers.

    Raises:
        ExportError: one is not causal over what the forward got, or another operation may look across positions.
    """
    other = sorted({node.op_type for node in graph} - POSITIONWISE)
    nodes = [node for node in graph if node.op_type == "Attention"]
    found = attentions(graph)
    plain = len(found) == len(nodes) and all(attention.plain for attention in found)
    if other or not nodes or not plain:
        what = ", ".join(other) if plain else "attention with a mask, or that is not causal"
        if not nodes:
            what = "no scaled_dot_product_attention that the opset, 23 or later, keeps whole"
        raise ExportError(
            f"the forward has {what}; expected scaled_dot_product_attention(is_causal=True), and nothing else that "
            "looks across positions"
        )
    return found


def _layer(number: int, attention: Attention) -> CachedLayer:
    """The attention of a layer, with its past and present keys and values (B, n_kv_head, S, head_size)."""
    shape = ir.Shape([AXIS_B, attention.n_kv_head, AXIS_S, attention.head_size])
    past, present = (
        [ir.Value(name=name, type=attention.key.type, shape=shape) for name in names]
        for names in (past_names(number), present_names(number))
    )
    return CachedLayer(attention, *past, *present)
