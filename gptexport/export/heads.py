"""Other heads on the same body: the graphs that return less than all logits, and never compute what they do not return.

Each is a new graph over the same weights, made from the portable logits graph; the model itself knows nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import AXIS_B, LENGTHS, LOGITS, LOGPROBS

MATMULS = ("MatMul", "DynamicQuantizeMatMul")
SCORE_CHUNK = 256  # positions whose logits exist at a time: 51 MB of float32 at GPT-2's vocabulary


@dataclass(frozen=True)
class _Head:
    """Where the body ends: logits = Cast(hidden @ weight + bias), the Cast only where the weights are not float32."""

    hidden: ir.Value  # (B,T,C)
    op: tuple[str, str]  # domain and name: MatMul, or its quantized kind
    weights: list[ir.Value | None]  # what it takes besides: (C,V), and scales where it is quantized
    bias: ir.Value | None  # (V), where it is not inside the quantized kind
    casts: bool
    nodes: list[ir.Node]  # of the head, last first

    @property
    def width(self) -> int:
        shape = self.hidden.shape
        assert shape is not None and isinstance(shape[-1], int), "the exporter infers every shape"
        return shape[-1]


def last_graph(logits: Trace) -> Trace:
    """input_ids (B,T), lengths (B) int64 -> logits (B,V) of each row's last real token; the head runs on B positions.

    Raises:
        ExportError: the forward does not end in a linear head.
    """
    trace, head = _without_head(logits, "last")
    graph, tape = trace.graph.graph, Tape()
    lengths = ir.Value(name=LENGTHS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([AXIS_B]))
    graph.inputs.append(lengths)
    last = tape.op("Sub", [lengths, _constant(tape, 1)])
    row = tape.op("Unsqueeze", [last, _constant(tape, [1])])
    hidden = tape.op("GatherND", [head.hidden, row], {"batch_dims": 1})  # (B,C)
    _finish(graph, tape, _apply(tape, head, hidden), LOGITS, [AXIS_B, _vocab(logits)])
    return trace


def score_graph(logits: Trace, chunk_size: int = SCORE_CHUNK) -> Trace:
    """input_ids (B,T) -> logprobs (B,T-1) of each next token. The (B,T,V) logits never exist at once.

    Args:
        chunk_size: positions whose logits exist at a time.

    Raises:
        ExportError: the forward does not end in a linear head.
    """
    trace, head = _without_head(logits, "score")
    graph, tape = trace.graph.graph, Tape()
    ids = graph.inputs[0]
    zero, one, chunk = (_constant(tape, [value]) for value in (0, 1, chunk_size))
    axis1, end, flat = _constant(tape, [1]), _constant(tape, [2**62]), _constant(tape, [-1])
    targets = tape.op("Reshape", [tape.op("Slice", [ids, one, end, axis1]), flat])  # (N), N = B * (T-1)
    before = tape.op("Slice", [head.hidden, zero, _constant(tape, [-1]), axis1])  # every position but the last
    hidden = tape.op("Reshape", [before, _constant(tape, [-1, head.width])])  # (N,C)
    count = tape.op("Shape", [targets])
    trips = tape.op("Div", [tape.op("Add", [count, _constant(tape, [chunk_size - 1])]), chunk])
    nothing = tape.op("Constant", [], {"value": ir.tensor(np.zeros(0, np.float32))})
    body = _score_body(head, hidden, targets, chunk)
    always = tape.op("Constant", [], {"value": ir.tensor(np.array(True))})
    done = tape.op("Loop", [tape.op("Squeeze", [trips]), always, nothing], {"body": body})
    shape = tape.op("Shape", [tape.op("Slice", [ids, one, end, axis1])])
    result = tape.op("Reshape", [done, shape], {"allowzero": 1})  # T = 1 has nothing to score: (B,0)
    _finish(graph, tape, result, LOGPROBS, [AXIS_B, "T-1"])
    NameFixPass()(trace.graph)  # the loop's values have names of their own
    return trace


def _score_body(head: _Head, hidden: ir.Value, targets: ir.Value, chunk: ir.Value) -> ir.Graph:
    """One trip: log-probs of the next `chunk` positions, appended to those before."""
    tape = Tape()
    trip = ir.Value(name="trip", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    go_on = ir.Value(name="go_on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    before = ir.Value(name="before", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["done"]))
    start = tape.op("Mul", [trip, chunk])
    stop = tape.op("Add", [start, chunk])
    rows = tape.op("Slice", [hidden, start, stop, _constant(tape, [0])])
    wanted = tape.op(
        "Unsqueeze", [tape.op("Slice", [targets, start, stop, _constant(tape, [0])]), _constant(tape, [1])]
    )
    logits = _apply(tape, head, rows)  # (chunk, V)
    picked = tape.op("GatherElements", [tape.op("LogSoftmax", [logits], {"axis": -1}), wanted], {"axis": 1})
    after = tape.op("Concat", [before, tape.op("Squeeze", [picked, _constant(tape, [1])])], {"axis": 0})
    after.name, after.type, after.shape = "after", before.type, ir.Shape(["done_after"])
    still = tape.op("Identity", [go_on])
    still.name, still.type, still.shape = "still", go_on.type, go_on.shape
    return ir.Graph([trip, go_on, before], [still, after], nodes=tape.nodes, name="score_chunk")


def _without_head(logits: Trace, name: str) -> tuple[Trace, _Head]:
    """A copy of the logits graph that ends before its head."""
    trace = replace(logits, graph=logits.graph.clone())
    graph = trace.graph.graph
    graph.name = name
    head = _find_head(graph)
    graph.outputs.clear()
    for node in head.nodes:
        graph.remove(node, safe=True)
    return trace, head


def _find_head(graph: ir.Graph) -> _Head:
    node = graph.outputs[0].producer()
    nodes, bias = [node], None
    casts = node is not None and node.op_type == "Cast"
    if node is not None and casts:
        node = _producer(node.inputs[0])
        nodes.append(node)
    if node is not None and node.op_type == "Add":
        bias = next((value for value in node.inputs if _is_vector(value)), None)
        if bias is not None:
            node = _producer(next(value for value in node.inputs if value is not bias))
            nodes.append(node)
    if node is None or node.op_type not in MATMULS or node.inputs[0] is None or not _is_weight(node.inputs[1]):
        found = node.op_type if node is not None else "no operation"
        raise ExportError(
            f"the forward ends in {found}; expected a linear head, which alone can be run on fewer positions"
        )
    parts = [part for part in nodes if part is not None]
    return _Head(node.inputs[0], (node.domain, node.op_type), list(node.inputs[1:]), bias, casts, parts)


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 1


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _is_weight(value: ir.Value | None) -> bool:
    """An initializer, or the Transpose of one that is tied."""
    if value is None or value.is_initializer():
        return value is not None
    producer = value.producer()
    return producer is not None and producer.op_type == "Transpose" and _is_weight(producer.inputs[0])


def _apply(tape: Tape, head: _Head, rows: ir.Value) -> ir.Value:
    """The head's float32 logits of other hidden states than those it had."""
    domain, name = head.op
    logits = tape.op(name, [rows, *head.weights], domain=domain)
    if head.bias is not None:
        logits = tape.op("Add", [logits, head.bias])
    return tape.op("Cast", [logits], {"to": ir.DataType.FLOAT}) if head.casts else logits


def _finish(graph: ir.Graph, tape: Tape, result: ir.Value, name: str, shape: list[str | int]) -> None:
    graph.extend(tape.nodes)
    result.name, result.type, result.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    graph.outputs.append(result)


def _constant(tape: Tape, value: int | list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.int64))})


def _vocab(logits: Trace) -> int:
    shape = logits.graph.graph.outputs[0].shape
    assert shape is not None and isinstance(shape[-1], int)
    return shape[-1]
