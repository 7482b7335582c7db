"""`--target cpu` for the graph `decode`: each layer's attention over its cache becomes one GroupQueryAttention.

Its kernel writes the new keys and values into the cache, which past and present share, and reads no further than a row
has tokens, whatever the capacity. It takes several tokens a row only for rows that are all empty, or for a single row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.export.check import Audit
from gptexport.export.cpu import ATTENTION, heads_of
from gptexport.export.fusions import MICROSOFT, heads_merged, input_of
from gptexport_runtime.contract.names import PAST_LENGTHS

Lengths = Callable[[ir.Graph], tuple[ir.Value, ir.Value]]


def fuse_decode(model: ir.Model, make_lengths: Lengths | None = None) -> Audit:
    """Fuse a `decode` graph in place. Heads of a size that the kernel does not take keep the portable form.

    Args:
        make_lengths: adds GroupQueryAttention's seqlens_k and total_sequence_length to a graph. None: as the CPU's
            kernel wants them.

    Returns: how many attentions were expected to be fused, and how many are.
    """
    graph = model.graph
    attentions = [node for node in graph if node.op_type == "Attention" and heads_of(node) is not None]
    lengths: Sequence[ir.Value] | None = None
    done = 0
    for node in attentions:
        qkv, out = _packed_qkv(node), heads_merged(node)
        if qkv is None or out is None:
            continue
        lengths = lengths or (make_lengths or _lengths)(graph)
        _fuse(graph, node, qkv, out, lengths)
        done += 1
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[MICROSOFT] = 1
    return {ATTENTION: {"expected": len(attentions), "achieved": done}} if attentions else {}


def _packed_qkv(attention: ir.Node) -> ir.Value | None:
    """The (B,T,3C) that is split into q, k and v, if k and v went from there into the cache."""
    query, *cached = attention.inputs[:3]
    scatters = [value.producer() if value is not None else None for value in cached]
    if any(scatter is None or scatter.op_type != "ScatterND" for scatter in scatters):
        return None
    sources = [query, *(scatter.inputs[2] for scatter in scatters if scatter is not None)]
    parts = [input_of(input_of(part, "Transpose"), "Reshape") for part in sources]
    split = parts[0].producer() if parts[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != parts:
        return None
    return split.inputs[0]


def _lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """GroupQueryAttention's seqlens_k (B), each row's tokens less one; total_sequence_length, the most of any row."""
    tape = Tape()
    past = next(value for value in graph.inputs if value.name == PAST_LENGTHS)
    T = tape.op("Shape", [graph.inputs[0]], {"start": 1, "end": 2})
    lengths = tape.op("Cast", [tape.op("Add", [past, T])], {"to": ir.DataType.INT32})
    one = tape.op("Constant", [], {"value": ir.tensor([1], dtype=ir.DataType.INT32)})
    seqlens = tape.op("Sub", [lengths, one])
    total = tape.op("ReduceMax", [lengths], {"keepdims": 0})
    graph.insert_before(graph[0], tape.nodes)
    return seqlens, total


def _fuse(graph: ir.Graph, node: ir.Node, qkv: ir.Value, out: ir.Value, lengths: Sequence[ir.Value]) -> None:
    scatters = [value.producer() for value in node.inputs[1:3] if value is not None]
    past = [scatter.inputs[0] for scatter in scatters if scatter is not None]
    present = [scatter.outputs[0] for scatter in scatters if scatter is not None]
    heads = heads_of(node)
    assert heads is not None
    attributes: dict[str, int | float] = {"num_heads": heads, "kv_num_heads": heads}
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes["scale"].as_float()
    fused = ir.node(ATTENTION, [qkv, None, None, *past, *lengths], attributes, domain=MICROSOFT, num_outputs=3)
    graph.insert_before(node, fused)
    for old, new in zip((out, *present), fused.outputs, strict=True):
        new.shape, new.type, name = old.shape, old.type, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name
