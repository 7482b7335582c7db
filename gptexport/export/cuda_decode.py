"""`--target cuda` for the graph `decode`, in float16 and bfloat16: GroupQueryAttention over the cache, as on the CPU.

ONNX Runtime's CUDA provider has no float32 kernel of it; there the portable form stays, which scatters the new keys
and values into the cache and attends to all of it under a mask.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.config import DType
from gptexport.export.check import Audit
from gptexport.export.cpu_decode import fuse_decode
from gptexport_runtime.contract.names import PAST_LENGTHS, past_names


def fuse_decode_for_cuda(model: ir.Model, dtype: DType) -> Audit:
    """Fuse a `decode` graph in place, where there is a kernel for it.

    Returns: how many attentions were expected to be fused, and how many are.
    """
    return {} if dtype == "float32" else fuse_decode(model, _lengths)


def _lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """GroupQueryAttention's seqlens_k (B), each row's tokens less one; and total_sequence_length, a bound of them.

    The kernel reads total_sequence_length on the host, and each row's own length on the device. Computed of the
    lengths, the bound would have to be copied back at every step, which waits for the GPU and rules out CUDA graphs; so
    it is made of shapes, which the host knows: the cache's capacity. Only where several rows come with several tokens
    each, which the kernel takes when all of them are empty, it must be told T, by which it knows that they are.

    And seqlens_k is the position of a row's last token, not its length plus T less one: of a sum with a shape, ONNX
    Runtime would compute all on the host.
    """
    tape = Tape()
    inputs = {value.name: value for value in graph.inputs}
    ids, past_key = graph.inputs[0], inputs[past_names(0)[0]]
    positions = _positions(inputs[PAST_LENGTHS])
    B, T = (tape.op("Shape", [ids], {"start": axis, "end": axis + 1}) for axis in (0, 1))
    S = tape.op("Shape", [past_key], {"start": 2, "end": 3})
    one, last = (tape.op("Constant", [], {"value": ir.tensor(np.array(n, np.int64))}) for n in ([1], -1))
    before = tape.op("Cast", [tape.op("Gather", [positions, last], {"axis": 1})], {"to": ir.DataType.INT32})
    prompts = tape.op("And", [tape.op("Greater", [T, one]), tape.op("Greater", [B, one])])
    total = tape.op("Cast", [tape.op("Squeeze", [tape.op("Where", [prompts, T, S])])], {"to": ir.DataType.INT32})
    made_by = positions.producer()
    assert made_by is not None
    graph.insert_after(made_by, tape.nodes)
    return before, total


def _positions(past_lengths: ir.Value) -> ir.Value:
    """(B,T): where in the cache each token goes, as `decode_graph` has counted."""
    (unsqueezed,) = (use.node.outputs[0] for use in past_lengths.uses())
    (positions,) = (use.node.outputs[0] for use in unsqueezed.uses())
    return positions
