"""The head `last`: the LM head runs on each row's last real token alone."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.heads.lm_head import finish, vocab_of, without_lm_head
from gptexport.export.irtools import constant
from gptexport.export.trace import Trace
from gptexport.recipe import Recipe
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.names import AXIS_B, LENGTHS, LOGITS


def build(logits: Trace, _recipe: Recipe, head: Head = heads.LAST) -> Trace:
    """input_ids (B,T), lengths (B) int64 -> logits (B,V) of each row's last real token; the head runs on B positions.

    Raises:
        ExportError: the forward does not end in a linear head.
    """
    trace, lm_head = without_lm_head(logits, head)
    graph, tape = trace.graph, Tape()
    lengths = ir.Value(name=LENGTHS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([AXIS_B]))
    graph.inputs.append(lengths)
    last = tape.op("Sub", [lengths, constant(tape, 1)])
    row = tape.op("Unsqueeze", [last, constant(tape, [1])])
    hidden = tape.op("GatherND", [lm_head.hidden, row], {"batch_dims": 1})  # (B,C)
    finish(graph, tape, lm_head.apply(tape, hidden), LOGITS, [AXIS_B, vocab_of(logits)])
    return trace
