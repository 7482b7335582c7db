"""The head `score`: log-probs of the tokens that came, without all logits ever existing at once.

In a loop, as a rule: its trips are as long for any number of tokens. Where a backend lays out the weights of a loop's
body anew in each trip, as OpenVINO does, in a few parts one behind another.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass
from onnx_ir.tape import Tape

from gptexport.export.heads.lm_head import LMHead, finish, without_lm_head
from gptexport.export.irtools import constant
from gptexport.export.trace import Trace
from gptexport.recipe import Recipe
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import AXIS_B, LOGPROBS

if TYPE_CHECKING:
    from gptexport.export.targets import Target


def build(logits: Trace, recipe: Recipe) -> Trace:
    """input_ids (B,T) -> logprobs (B,T-1) of each next token; as many logits at a time as the target says.

    Raises:
        ExportError: the forward does not end in a linear head.
    """
    trace, lm_head = without_lm_head(logits, heads.SCORE)
    graph, tape = trace.graph, Tape()
    ids = graph.inputs[0]
    zero, one = (constant(tape, [value]) for value in (0, 1))
    axis1, end, flat = constant(tape, [1]), constant(tape, [2**62]), constant(tape, [-1])
    targets = tape.op("Reshape", [tape.op("Slice", [ids, one, end, axis1]), flat])  # (N), N = B * (T-1)
    before = tape.op("Slice", [lm_head.hidden, zero, constant(tape, [-1]), axis1])  # every position but the last
    hidden = tape.op("Reshape", [before, constant(tape, [-1, lm_head.width])])  # (N,C)
    how = _in_parts if recipe.target.score_parts else _in_a_loop
    done = how(tape, lm_head, hidden, targets, recipe.target)
    shape = tape.op("Shape", [tape.op("Slice", [ids, one, end, axis1])])
    result = tape.op("Reshape", [done, shape], {"allowzero": 1})  # T = 1 has nothing to score: (B,0)
    finish(graph, tape, result, LOGPROBS, [AXIS_B, "T-1"])
    NameFixPass()(trace.model)  # the loop's values have names of their own
    return trace


def _in_a_loop(tape: Tape, lm_head: LMHead, hidden: ir.Value, targets: ir.Value, target: Target) -> ir.Value:
    """(N) log-probs, `score_chunk` positions a trip."""
    chunk = constant(tape, [target.score_chunk])
    count = tape.op("Shape", [targets])
    trips = tape.op("Div", [tape.op("Add", [count, constant(tape, [target.score_chunk - 1])]), chunk])
    nothing = tape.op("Constant", [], {"value": ir.tensor(np.zeros(0, np.float32))})
    always = tape.op("Constant", [], {"value": ir.tensor(np.array(True))})
    body = _body(lm_head, hidden, targets, chunk)
    return tape.op("Loop", [tape.op("Squeeze", [trips]), always, nothing], {"body": body})


def _in_parts(tape: Tape, lm_head: LMHead, hidden: ir.Value, targets: ir.Value, target: Target) -> ir.Value:
    """(N) log-probs, in `score_parts` parts of at least `score_chunk` positions, or as many as there are."""
    parts = target.score_parts
    count = tape.op("Add", [tape.op("Shape", [targets]), constant(tape, [parts - 1])])
    size = tape.op("Max", [tape.op("Div", [count, constant(tape, [parts])]), constant(tape, [target.score_chunk])])
    ends = [tape.op("Mul", [size, constant(tape, [part])]) for part in range(parts + 1)]
    done = [_scored(tape, lm_head, hidden, targets, *bounds) for bounds in pairwise(ends)]
    return tape.op("Concat", done, {"axis": 0})


def _scored(
    tape: Tape, lm_head: LMHead, hidden: ir.Value, targets: ir.Value, start: ir.Value, stop: ir.Value
) -> ir.Value:
    """Log-probs of the positions from `start` up to `stop`, or to the last."""
    rows = tape.op("Slice", [hidden, start, stop, constant(tape, [0])])
    wanted = tape.op("Unsqueeze", [tape.op("Slice", [targets, start, stop, constant(tape, [0])]), constant(tape, [1])])
    logits = lm_head.apply(tape, rows)  # (stop - start, V)
    picked = tape.op("GatherElements", [tape.op("LogSoftmax", [logits], {"axis": -1}), wanted], {"axis": 1})
    return tape.op("Squeeze", [picked, constant(tape, [1])])


def _body(lm_head: LMHead, hidden: ir.Value, targets: ir.Value, chunk: ir.Value) -> ir.Graph:
    """One trip: log-probs of the next `chunk` positions, appended to those before.

    They begin where those before end. ONNX Runtime knows a shape on the host, where Slice wants it; a product with the
    number of the trip it would compute on the GPU, and wait for it twice a trip.
    """
    tape = Tape()
    trip = ir.Value(name="trip", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    go_on = ir.Value(name="go_on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    before = ir.Value(name="before", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["done"]))
    start = tape.op("Shape", [before])
    stop = tape.op("Add", [start, chunk])
    after = tape.op("Concat", [before, _scored(tape, lm_head, hidden, targets, start, stop)], {"axis": 0})
    after.name, after.type, after.shape = "after", before.type, ir.Shape(["done_after"])
    still = tape.op("Identity", [go_on])
    still.name, still.type, still.shape = "still", go_on.type, go_on.shape
    return ir.Graph([trip, go_on, before], [still, after], nodes=tape.nodes, name="score_chunk")
