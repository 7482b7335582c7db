"""An LM head whose rows of logits begin on 128 bytes: its weight gets rows of zeros, and what they give is cut off.

The rows of GPT-2's logits are 50257 16-bit numbers, so that all but every eighth begins where a GPU stores no 16 bytes
at once, and cuBLAS has to take kernels that do not. Behind the product a Slice restores V for every head that goes on
computing; `logits` leaves it out, and says how long its rows are (META_ROW).
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.heads.lm_head import find_lm_head
from gptexport.export.irtools import constant, is_number, is_vector, number, only_reader, weight_behind
from gptexport.export.rewrites import Audit, counted
from gptexport.export.rewrites.widen import pad_weight
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import META_ROW

MULTIPLE = 64  # 16-bit numbers in 128 bytes
PADDED = "LM head of padded rows"


def pad_vocab(trace: Trace) -> Audit:
    """Pad the head of the logits graph, in place. Nothing is done where V is a multiple, or rows are cut already.

    Before: x @ W, or x @ W + b, of V columns. After: the same of columns up to the multiple, and Slice to V.
    """
    try:
        product = find_lm_head(trace).steps[0].node
    except ExportError:
        return counted(PADDED, 1, 0)
    result, read, weight = product.outputs[0], product.inputs[1], weight_behind(product.inputs[1])
    assert result.shape is not None and isinstance(result.shape[-1], int) and read is not None
    V = result.shape[-1]
    more = -V % MULTIPLE
    if not more:
        return {}
    if product.op_type != "MatMul" or weight is None or weight.name not in trace.weights:
        return counted(PADDED, 1, 0)
    pad_weight(trace, weight, (0, more) if read is weight else (0, 0, 0, more))
    read.shape = ir.Shape([read.shape[0] if read.shape is not None else None, V + more])
    result.shape = _as_wide_as(result, V + more)
    add = only_reader(result)
    bias = _bias_of(add)
    if add is not None and bias is not None:
        pad_weight(trace, bias, (0, more))
        result = add.outputs[0]
        result.shape = _as_wide_as(result, V + more)
    _cut(trace.graph, result, V)
    return counted(PADDED, 1, 1)


def drop_cut(trace: Trace) -> None:
    """Leave the rows of a logits graph as long as its product makes them, in place, and note their length.

    Before: the LM head, a Slice of its rows, and then what treats every number alike. Else nothing is done.
    """
    steps = find_lm_head(trace).steps
    cut = next((step.node for step in steps if step.node.op_type == "Slice"), None)
    if cut is None or not _cuts_the_end(cut):
        return
    after = steps[[step.node for step in steps].index(cut) + 1 :]
    if not all(_treats_alike(step.node) for step in after):
        return
    longer = cut.inputs[0]
    assert longer is not None and longer.shape is not None and isinstance(longer.shape[-1], int)
    _leave_out(trace.graph, cut)
    for step in after:
        step.node.outputs[0].shape = _as_wide_as(step.node.outputs[0], longer.shape[-1])
    trace.model.metadata_props[META_ROW] = str(longer.shape[-1])


def drop_cast(trace: Trace) -> None:
    """Leave the logits in the floats that they are computed in, in place."""
    cast = trace.graph.outputs[0].producer()
    if cast is not None and cast.op_type == "Cast":
        _leave_out(trace.graph, cast)


def _leave_out(graph: ir.Graph, node: ir.Node) -> None:
    """Who reads the node reads its first input, which becomes the graph's output where the node's result was."""
    before, result = node.inputs[0], node.outputs[0]
    assert before is not None
    name, was_output = result.name, result is graph.outputs[0]
    result.replace_all_uses_with(before, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if was_output:
        before.name = name


def _bias_of(reader: ir.Node | None) -> ir.Value | None:
    if reader is None or reader.op_type != "Add":
        return None
    return next((value for value in reader.inputs if is_vector(value)), None)


def _cut(graph: ir.Graph, value: ir.Value, V: int) -> None:
    """Every reader of `value` reads its first V columns."""
    tape, readers, node = Tape(), list(value.uses()), value.producer()
    cut = tape.op("Slice", [value, *(constant(tape, [bound]) for bound in (0, V, -1))])
    assert node is not None
    cut.type, cut.shape = value.type, _as_wide_as(value, V)
    for use in readers:
        use.node.replace_input_with(use.idx, cut)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = cut
        cut.name, value.name = value.name, None
    graph.insert_after(node, tape.nodes)


def _cuts_the_end(node: ir.Node) -> bool:
    """A Slice of the last axis that begins at 0."""
    return number(node.inputs[1]) == 0 and number(node.inputs[3]) in (-1, 2)


def _treats_alike(node: ir.Node) -> bool:
    """Each number by itself, with the help of single numbers alone."""
    return all(value is None or is_number(value) for value in node.inputs[1:]) or len(node.inputs) == 1


def _as_wide_as(value: ir.Value, width: int) -> ir.Shape:
    assert value.shape is not None
    return ir.Shape([*value.shape[:-1], width])
