"""Ids that a graph by itself does not refuse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptexport_runtime.contract.names import INPUT_IDS

if TYPE_CHECKING:
    import onnx_ir as ir


def refuse_wrong_ids(graph: Path, vocab_size: int) -> None:
    """Have each id looked up in 0 ... V-1 first, which ONNX Runtime refuses on a CPU if it is not there.

    The runtime checks ids itself; here is none. Without it ONNX counts a negative id from the vocabulary's end, and
    GatherBlockQuantized, which int4 has, reads whatever lies behind its table.
    """
    import onnx_ir as ir

    model = ir.load(graph)
    ids = next(value for value in model.graph.inputs if value.name == INPUT_IDS)
    uses = tuple(ids.uses())
    dtype = (ids.dtype or ir.DataType.INT64).numpy()
    zero, one, V = (_number(model.graph, np.array(number, dtype)) for number in (0, 1, vocab_size))
    negative = ir.node("Less", [ids, zero], name=f"{INPUT_IDS}.negative")
    past = ir.node("Where", [negative.outputs[0], V, ids], name=f"{INPUT_IDS}.none_negative")
    every = ir.node("Range", [zero, V, one], name=f"{INPUT_IDS}.every")
    checked = ir.node("Gather", [every.outputs[0], past.outputs[0]], name=f"{INPUT_IDS}.checked")
    for node, place in uses:
        node.replace_input_with(place, checked.outputs[0])
    model.graph.insert_before(model.graph[0], [negative, past, every, checked])
    ir.save(model, graph)


def _number(graph: ir.Graph, number: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    name = f"{INPUT_IDS}.{number}"
    value = ir.Value(name=name, const_value=ir.tensor(number, name=name))
    graph.register_initializer(value)
    return value
