"""Where a body ends and its LM head begins, so that the head can be run on other positions than all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.irtools import is_number, is_vector, producer, weight_behind
from gptexport.export.trace import Trace
from gptexport_runtime.contract.heads import Head

MATMULS = ("MatMul", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Elementwise:
    """One operation of a head's tail: of what came before, None among its inputs, and of a number at most."""

    op_type: str
    inputs: tuple[ir.Value | None, ...]
    attributes: dict[str, ir.Attr]

    def apply(self, tape: Tape, logits: ir.Value) -> ir.Value:
        inputs = [logits if value is None else value for value in self.inputs]
        return tape.op(self.op_type, inputs, self.attributes)


@dataclass(frozen=True)
class LMHead:
    """logits = tail(hidden @ weight + bias); the tail casts what is not float32, and squashes where there is a cap."""

    hidden: ir.Value  # (B,T,C)
    op: tuple[str, str]  # domain and name: MatMul, or its quantized kind
    weights: list[ir.Value | None]  # what it takes besides: (C,V), and scales where it is quantized
    bias: ir.Value | None  # (V), where it is not inside the quantized kind
    tail: list[Elementwise]  # in their order
    nodes: list[ir.Node]  # of the head, last first

    @property
    def width(self) -> int:
        """C."""
        shape = self.hidden.shape
        assert shape is not None and isinstance(shape[-1], int), "the exporter infers every shape"
        return shape[-1]

    def apply(self, tape: Tape, rows: ir.Value) -> ir.Value:
        """The float32 logits of other hidden states than those it had."""
        domain, name = self.op
        logits = tape.op(name, [rows, *self.weights], domain=domain)
        if self.bias is not None:
            logits = tape.op("Add", [logits, self.bias])
        for step in self.tail:
            logits = step.apply(tape, logits)
        return logits


def without_lm_head(logits: Trace, head: Head) -> tuple[Trace, LMHead]:
    """A copy of the logits graph, named after `head`, that ends before its LM head.

    Raises:
        ExportError: the forward does not end in a linear head.
    """
    trace = replace(logits, model=logits.model.clone())
    graph = trace.graph
    graph.name = head.name
    found = find_lm_head(graph)
    graph.outputs.clear()
    for node in found.nodes:
        graph.remove(node, safe=True)
    return trace, found


def find_lm_head(graph: ir.Graph) -> LMHead:
    """The linear that a logits graph ends in.

    Raises:
        ExportError: it ends in something else.
    """
    node = graph.outputs[0].producer()
    nodes, bias = [node], None
    tail: list[Elementwise] = []
    while node is not None and (step := _elementwise(node)) is not None:
        tail.insert(0, step)
        node = producer(node.inputs[step.inputs.index(None)])
        nodes.append(node)
    if node is not None and node.op_type == "Add":
        bias = next((value for value in node.inputs if is_vector(value)), None)
        if bias is not None:
            node = producer(next(value for value in node.inputs if value is not bias))
            nodes.append(node)
    if node is None or node.op_type not in MATMULS or node.inputs[0] is None or weight_behind(node.inputs[1]) is None:
        found = node.op_type if node is not None else "no operation"
        raise ExportError(
            f"the forward ends in {found}; expected a linear head, which alone can be run on fewer positions"
        )
    parts = [part for part in nodes if part is not None]
    return LMHead(node.inputs[0], (node.domain, node.op_type), list(node.inputs[1:]), bias, tail, parts)


def _elementwise(node: ir.Node) -> Elementwise | None:
    """What a node does to each logit by itself, a cast or a part of a softcap; None where it is neither."""
    inputs = tuple(value if value is not None and is_number(value) else None for value in node.inputs)
    known = {"Cast": 1, "Tanh": 1, "Mul": 2, "Div": 2}.get(node.op_type) == len(inputs)
    return Elementwise(node.op_type, inputs, dict(node.attributes)) if known and inputs.count(None) == 1 else None


def vocab_of(logits: Trace) -> int:
    """V."""
    shape = logits.graph.outputs[0].shape
    assert shape is not None and isinstance(shape[-1], int)
    return shape[-1]


def finish(graph: ir.Graph, tape: Tape, result: ir.Value, name: str, shape: list[str | int]) -> None:
    """Put what `tape` holds into the graph, and make `result` its float32 output."""
    graph.extend(tape.nodes)
    result.name, result.type, result.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    graph.outputs.append(result)
