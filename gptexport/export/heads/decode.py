"""The head `decode`, which generates: new tokens and a cache in, the last position's logits and the cache out.

Made from the graph `last` by three changes: a token's position counts from what its row has in the cache; keys and
values are written into the cache where they belong; queries attend to the whole cache, as far as their own position.
How the last two are done is the target's to say (`Target.attend`). One graph serves the prompt (T tokens, an empty
cache) and the single step (T = 1). Nothing here copies the cache: a session binds input and output to the same memory.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gptexport.errors import ExportError
from gptexport.export.attention import Attention, attentions
from gptexport.export.cached import CachedLayer, CachedStep, LayerCache, Visible, attends
from gptexport.export.heads import last
from gptexport.export.positionwise import check_positionwise
from gptexport.export.rewrites.positions import count_from, look_up_sizes
from gptexport.export.shift import layers_needed, read_before, shifts
from gptexport.export.sizes import Sizes
from gptexport.export.trace import Trace
from gptexport.recipe import Recipe
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import AXIS_B, AXIS_S, META_BLOCK_SIZE, PAST_LENGTHS, past_names, present_names


def build(logits: Trace, recipe: Recipe) -> Trace:
    """input_ids (B,T), lengths (B), past_lengths (B) int64 and the cache -> logits (B,V) of each row's last new token.

    Row b's tokens get the positions past_lengths[b] ... past_lengths[b] + T - 1, all of which must be below the
    cache's capacity S. What padding leaves in the cache lies past the row's end, is never attended to, and is
    overwritten by the tokens to come.

    Raises:
        ExportError: something else than causal attention looks across positions, or there is no linear head.
    """
    made = last.build(logits, recipe, heads.DECODE)
    trace = replace(made, weights=dict(made.weights))  # which gets tables of its own
    graph, block_size = trace.graph, int(trace.model.metadata_props[META_BLOCK_SIZE])
    lengths = graph.inputs[1]
    past_lengths = ir.Value(name=PAST_LENGTHS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([AXIS_B]))
    step = CachedStep(graph, past_lengths)
    _check_attention(trace)
    count_from(trace, step.positions)
    RemoveUnusedNodesPass()(trace.model)
    look_up_sizes(trace, step.positions, block_size)
    sizes = Sizes(graph, trace.weights, step.positions)
    moved = shifts(graph)
    check_positionwise(graph, sizes.on_tokens, but=_behind(lengths), known=moved)
    layers = [
        _layer(number, attention, attends(trace, sizes, attention, block_size))
        for number, attention in enumerate(_attentions(graph))
    ]
    caches: list[LayerCache] = list(layers)
    kept = {}
    for node in moved:
        kept[node] = _kept(node, layers[0].attention, len(caches))
        caches += kept[node]
    step.begin(caches)
    attend = recipe.target.attend(recipe.precision)
    for layer in layers:
        attend(step, layer)
    for node, of_node in kept.items():
        read_before(step, node, of_node)
    graph.outputs.extend(value for cache in caches for value in (cache.present_key, cache.present_value))
    RemoveUnusedNodesPass()(trace.model)
    trace.audit.update(step.audit)
    return trace


def _check_attention(trace: Trace) -> None:
    """No attention was left as it was written by hand.

    Raises:
        ExportError: one was; the message says why.
    """
    if trace.by_hand:
        raise ExportError(
            f"attention written by hand is not one node, because {trace.by_hand[0]}. A cache is made for "
            "softmax(scale * q @ k.T, masked) @ v, with a mask that depends on no token, and for "
            "scaled_dot_product_attention"
        )


def _attentions(graph: ir.Graph) -> list[Attention]:
    """Every attention, in the order of the layers.

    Raises:
        ExportError: there is none, or one whose heads are not known.
    """
    nodes = [node for node in graph if node.op_type == "Attention"]
    found = attentions(graph)
    if not nodes or len(found) != len(nodes):
        raise ExportError(
            "the forward has no attention that is one node: scaled_dot_product_attention, which the opset, 23 or "
            "later, keeps whole, or softmax(q @ k.T) @ v with a causal mask that depends on no token"
        )
    return found


def _behind(value: ir.Value) -> set[ir.Value]:
    """All that is computed from a value."""
    found = {value}
    for use in value.uses():
        for output in use.node.outputs:
            found |= _behind(output)
    return found


def _layer(number: int, attention: Attention, visible: Visible) -> CachedLayer:
    """The attention of a layer, with its past and present keys and values."""
    past_key, past_value, present_key, present_value = _values(number, attention)
    return CachedLayer(past_key, past_value, present_key, present_value, attention, visible)


def _values(number: int, attention: Attention) -> list[ir.Value]:
    """Past key and value, present key and value of a layer (B, n_kv_head, S, head_size)."""
    shape = ir.Shape([AXIS_B, attention.n_kv_head, AXIS_S, attention.head_size])
    names = (*past_names(number), *present_names(number))
    return [ir.Value(name=name, type=attention.key.type, shape=shape) for name in names]


def _kept(shift: ir.Node, like: Attention, first: int) -> list[LayerCache]:
    """Layers of cache for what a token takes of the one before, numbered from `first`."""
    count = layers_needed(shift, like.n_kv_head, like.head_size)
    return [LayerCache(*_values(first + i, like)) for i in range(count)]
