"""Where a body ends and its LM head begins, so that the head can be run on other positions than all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.irtools import constant, number
from gptexport.export.positionwise import ELEMENTWISE
from gptexport.export.sizes import Sizes, length_axes
from gptexport.export.trace import Trace
from gptexport_runtime.contract.heads import Head

MATMULS = {"MatMul": 2, "DynamicQuantizeMatMul": 2, "MatMulNBits": 3}  # and how many axes its weight has


@dataclass(frozen=True, eq=False)
class _Step:
    """A node, and what it takes: removing it from a graph takes its inputs away."""

    node: ir.Node
    inputs: tuple[ir.Value | None, ...]
    index: int  # of them, the one that depends on tokens


@dataclass(frozen=True, eq=False)
class LMHead:
    """A linear, and what is done to each position's logits by themselves: a bias, a softcap, a cut, a Cast."""

    hidden: ir.Value  # (B,T,C)
    steps: tuple[_Step, ...]  # in order; the first is MatMul, or a quantized kind

    @property
    def width(self) -> int:
        """C."""
        shape = self.hidden.shape
        assert shape is not None and isinstance(shape[-1], int), "the exporter infers every shape"
        return shape[-1]

    def apply(self, tape: Tape, rows: ir.Value) -> ir.Value:
        """The float32 logits of other hidden states, (N,C), than those it had."""
        value = rows
        for step in self.steps:
            inputs = [value if index == step.index else source for index, source in enumerate(step.inputs)]
            attributes = {name: attribute.value for name, attribute in step.node.attributes.items()}
            if "axis" in attributes:
                attributes["axis"] = -1
            if step.node.op_type == "Slice":
                inputs[3] = constant(tape, [-1])
            value = tape.op(step.node.op_type, inputs, attributes, domain=step.node.domain)
        return value


def without_lm_head(logits: Trace, head: Head) -> tuple[Trace, LMHead]:
    """A copy of the logits graph, named after `head`, that ends before its LM head.

    Raises:
        ExportError: the forward does not end in a linear head.
    """
    trace = replace(logits, model=logits.model.clone())
    graph = trace.graph
    graph.name = head.name
    found = find_lm_head(trace)
    graph.outputs.clear()
    for step in reversed(found.steps):
        graph.remove(step.node, safe=True)
    return trace, found


def find_lm_head(trace: Trace) -> LMHead:
    """The linear that a logits graph ends in, and what follows it.

    Raises:
        ExportError: it ends in something else.
    """
    on_tokens = Sizes(trace.graph, trace.weights).on_tokens
    node, steps = trace.graph.outputs[0].producer(), []
    while node is not None:
        index = next((number for number, value in enumerate(node.inputs) if value in on_tokens), 0)
        before = node.inputs[index]
        steps.append(_Step(node, tuple(node.inputs), index))
        if before is not None and _is_linear(node, on_tokens):
            return LMHead(before, tuple(reversed(steps)))
        if before is None or not _keeps_positions_apart(node, on_tokens):
            raise ExportError(
                f"the forward ends in {node.op_type}, behind its LM head or in place of one; expected a linear, and "
                "then what treats each position's logits by themselves"
            )
        node = before.producer()
    raise ExportError("the forward ends in no linear, which alone can be run on fewer positions")


def _is_linear(node: ir.Node, on_tokens: set[ir.Value]) -> bool:
    """A product of (B,T,C) with what depends on no token, (C,V), or its blocks."""
    if node.op_type not in MATMULS or any(value in on_tokens for value in node.inputs[1:]):
        return False
    hidden, weight = node.inputs[:2]
    shapes = [value.shape if value is not None else None for value in (hidden, weight)]
    return all(shape is not None for shape in shapes) and [len(shape or ()) for shape in shapes] == [
        3,
        MATMULS[node.op_type],
    ]


def _keeps_positions_apart(node: ir.Node, on_tokens: set[ir.Value]) -> bool:
    """Of each position's logits it makes that position's, with the help of vectors and numbers alone."""
    logits = [value for value in node.inputs if value in on_tokens]
    others = [value for value in node.inputs if value is not None and value not in on_tokens]
    if len(logits) != 1 or logits[0] is None or logits[0].shape is None or len(logits[0].shape) != 3:
        return False
    if node.op_type in ELEMENTWISE:
        return all(value.shape is not None and len(value.shape) < 2 and not length_axes(value) for value in others)
    if node.op_type in ("LogSoftmax", "Softmax"):
        return node.attributes.get_int("axis", -1) in (-1, 2)
    return node.op_type == "Slice" and len(node.inputs) > 3 and number(node.inputs[3]) in (-1, 2)


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
