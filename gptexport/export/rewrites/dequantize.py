"""Quantized weights as ONNX itself has them, DequantizeLinear in front of a MatMul, for a backend that joins the two.

The quantizers write ONNX Runtime's own operators. OpenVINO does not know these, but makes one kernel of
DequantizeLinear and MatMul, which keeps the weights in 4 or 8 bits, and quantizes what it multiplies them by in blocks
of a row.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import constant, number_like, take_place
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.export.rewrites.rounding import FLAT
from gptexport.export.write import view_of
from gptexport.recipe import Limits

WRITTEN_OUT = "quantized weights written out"
FLOAT = ir.DataType.FLOAT
CODES = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}  # by the bits of a code
TWO_CODES = 16  # one byte of two codes of 4 bits: the first, and 16 times the second


def write_out_quantized(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: MatMulNBits, GatherBlockQuantized, DynamicQuantizeMatMul. After: ONNX's own, over the same bytes."""
    found = [node for node in ir.traversal.RecursiveGraphIterator(graph) if node.op_type in _WRITE_OUT]
    for node in found:
        tape = Tape()
        result = _WRITE_OUT[node.op_type](tape, graph, node)
        assert node.graph is not None
        node.graph.insert_before(node, tape.nodes)
        take_place(result, node.outputs[0])
        node.graph.remove(node, safe=True)
    return counted(WRITTEN_OUT, len(found), len(found))


def _blocks_times(tape: Tape, graph: ir.Graph, node: ir.Node) -> ir.Value:
    """MatMulNBits: rows of (N,K), in blocks along K."""
    x, codes, wide_scales, zeros, _, *bias = [*node.inputs, None, None][:6]
    N, K, bits, block = (node.attributes.get_int(name, 0) for name in ("N", "K", "bits", "block_size"))
    blocks = -(-K // block)
    scales = _narrow(wide_scales)
    assert codes is not None and codes.name is not None and zeros is not None
    matrix = view_of(graph, codes.name, CODES[bits], [N, blocks * block])
    points = view_of(graph, f"{zeros.name}{FLAT}", CODES[bits], [N, blocks])
    weight = tape.op("DequantizeLinear", [matrix, scales, points], {"axis": 1, "block_size": block})
    if scales is not wide_scales:
        weight = tape.op("Cast", [weight], {"to": FLOAT})
    if blocks * block != K:
        weight = tape.op("Slice", [weight, *(constant(tape, [bound]) for bound in (0, K, 1))])
    product = tape.op("MatMul", [x, tape.op("Transpose", [weight], {"perm": [1, 0]})])
    return _biased(tape, product, bias)


def _channels_times(tape: Tape, _graph: ir.Graph, node: ir.Node) -> ir.Value:
    """DynamicQuantizeMatMul: one scale for each output channel, of (K,N) or of the Transpose of (N,K)."""
    x, right, scales, _, *bias = [*node.inputs, None, None][:5]
    assert right is not None
    turned = right.producer()
    if turned is None:
        weight = tape.op("DequantizeLinear", [right, scales], {"axis": 1})
    else:
        rows = tape.op("DequantizeLinear", [turned.inputs[0], scales], {"axis": 0})
        weight = tape.op("Transpose", [rows], {"perm": [1, 0]})
    return _biased(tape, tape.op("MatMul", [x, weight]), bias)


def _rows_of_blocks(tape: Tape, _graph: ir.Graph, node: ir.Node) -> ir.Value:
    """GatherBlockQuantized: some rows alone are widened, so a table keeps its size in memory."""
    table, ids, scales, zeros = node.inputs
    bits, block = (node.attributes.get_int(name, 0) for name in ("bits", "block_size"))
    assert table is not None and scales is not None and scales.shape is not None
    blocks = scales.shape[1]
    assert isinstance(blocks, int)
    apart = [tape.op("Shape", [ids]), constant(tape, [blocks, block])]
    codes = tape.op("Reshape", [_codes(tape, table, ids, bits), tape.op("Concat", apart, {"axis": 0})])
    points = _codes(tape, zeros, ids, bits)  # of a row of 4 bits, one more where its blocks are odd
    points = tape.op("Slice", [points, *(constant(tape, [bound]) for bound in (0, blocks, -1))])
    steps = tape.op("Sub", [codes, tape.op("Unsqueeze", [points, constant(tape, [-1])])])
    wide = tape.op("Cast", [tape.op("Gather", [scales, ids])], {"to": FLOAT})
    rows = tape.op("Mul", [steps, tape.op("Unsqueeze", [wide, constant(tape, [-1])])])
    together = tape.op("Concat", [tape.op("Shape", [ids]), constant(tape, [blocks * block])], {"axis": 0})
    return tape.op("Reshape", [rows, together])


def _codes(tape: Tape, table: ir.Value | None, ids: ir.Value | None, bits: int) -> ir.Value:
    """The codes of some rows, in float32."""
    read = tape.op("Cast", [tape.op("Gather", [table, ids])], {"to": FLOAT})
    if bits == 8:
        return read
    two = number_like(tape, TWO_CODES, FLOAT)
    second = tape.op("Floor", [tape.op("Div", [read, two])])
    first = tape.op("Sub", [read, tape.op("Mul", [second, two])])
    pairs = [tape.op("Unsqueeze", [each, constant(tape, [-1])]) for each in (first, second)]
    shape = tape.op("Concat", [tape.op("Shape", [ids]), constant(tape, [-1])], {"axis": 0})
    return tape.op("Reshape", [tape.op("Concat", pairs, {"axis": -1}), shape])


def _narrow(scales: ir.Value | None) -> ir.Value | None:
    """As they are stored, before they were widened."""
    cast = scales.producer() if scales is not None else None
    return cast.inputs[0] if cast is not None and cast.op_type == "Cast" else scales


def _biased(tape: Tape, product: ir.Value, bias: list[ir.Value | None]) -> ir.Value:
    return tape.op("Add", [product, *bias]) if bias and bias[0] is not None else product


_WRITE_OUT = {
    "MatMulNBits": _blocks_times,
    "GatherBlockQuantized": _rows_of_blocks,
    "DynamicQuantizeMatMul": _channels_times,
}

WRITE_OUT_QUANTIZED = Rewrite(WRITTEN_OUT, write_out_quantized, on_cpu=False)
