"""`--quantize int4`: linear layers and embeddings in 4 bits, for ONNX Runtime's CPU provider.

Every logit reads the LM head last, so it keeps 8 bits where that costs little: where it is a small part of all weights.

com.microsoft's MatMulNBits reads blocks of 32 weights with a scale and a zero point each, and quantizes what it
multiplies them by to 8 bits, in blocks of the same 32: so a row depends on no other. GatherBlockQuantized reads rows of
the same blocks. Scales are stored in float16 and widened as a graph is opened.

Which way a weight is rounded is decided by the inputs of its linear, seen on text that the model writes itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir
import torch
import torch.nn as nn
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.architectures import Architecture
from gptexport.export.irtools import MICROSOFT, constant, take_place, weight_behind
from gptexport.export.rewrites import Audit, counted
from gptexport.export.rewrites.embeddings import embeddings
from gptexport.export.rewrites.linears import add_of_bias, linear_weight, split_gemms
from gptexport.export.rewrites.rounding import BLOCK, FLAT, Rounded, round_weight
from gptexport.export.rewrites.smoothing import calibration_ids, smooth_norms
from gptexport.export.trace import Trace
from gptexport.recipe import Limits

QUANTIZED_MATMUL, QUANTIZED_GATHER = "MatMulNBits", "GatherBlockQuantized"
INT8_INPUTS = 4  # accuracy_level: what is multiplied by the weights may be quantized to 8 bits
SMALL_HEAD = 0.1  # of the linears' weights: in 8 bits it makes a bundle at most a tenth larger
REWRITINGS = 8  # of random ids, each from the logits of the one before; 16 were no better on the demo's models


class Int4:
    """The quantizer of the precision int4: see gptexport.precision.Quantizer."""

    preparing = "rounding weights to 4 bits, by what they read in text of the model's own"

    def __init__(self) -> None:
        self._rounded: dict[int, Rounded] = {}  # by where the weight lies in memory

    def prepare(self, model: nn.Module, architecture: Architecture, limits: Limits) -> str | None:
        """Smooth the activations, and round the weight of every linear as the model runs."""
        note = smooth_norms(model, architecture, limits)
        ids = own_text(model, calibration_ids(block_size=limits.block_size, vocab_size=limits.vocab_size))
        self._round_linears(model, ids, architecture.head)
        return note

    def quantize(self, trace: Trace) -> Audit:
        """Quantize every MatMul with a weight, and every table that tokens read rows of."""
        split_gemms(trace)
        graph = trace.graph
        matmuls = [node for node in graph if node.op_type == "MatMul" and linear_weight(trace, node.inputs[1])]
        gathers = embeddings(trace)
        stored: dict[tuple[ir.Value, bool], _Blocks] = {}
        for node in (*matmuls, *gathers):
            weight = weight_behind(node.inputs[1]) if node in matmuls else node.inputs[0]
            assert weight is not None
            by_output = node in gathers or weight is not node.inputs[1]  # (V,C): of an embedding, or a tied head
            if (weight, by_output) not in stored:
                stored[weight, by_output] = self._store(trace, weight, by_output=by_output)
            (_multiply if node in matmuls else _read_rows)(graph, node, stored[weight, by_output])
        RemoveUnusedNodesPass()(trace.model)  # Transposes of tied heads
        for weight, _ in stored:
            assert weight.name is not None
            trace.weights.pop(weight.name, None)
        graph.opset_imports[MICROSOFT] = 1
        achieved = Counter(node.op_type for node in graph)
        return {
            **counted(QUANTIZED_MATMUL, len(matmuls), achieved[QUANTIZED_MATMUL]),
            **counted(QUANTIZED_GATHER, len(gathers), achieved[QUANTIZED_GATHER]),
        }

    @torch.no_grad()
    def _round_linears(self, model: nn.Module, ids: torch.Tensor, head: str | None) -> None:
        """Round each linear's weight by its inputs, which are gone when the next one runs."""
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        sizes = {linear.weight.data_ptr(): linear.weight.numel() for linear in linears}
        last = dict(model.named_parameters(remove_duplicate=False)).get(head or "")
        few = last is not None and last.numel() <= SMALL_HEAD * sum(sizes.values())
        in_8_bits = last.data_ptr() if last is not None and few else None

        def see(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            assert isinstance(linear, nn.Linear)
            key = linear.weight.data_ptr()
            if key not in self._rounded:
                seen, bits = inputs[0].reshape(-1, inputs[0].shape[-1]), 8 if key == in_8_bits else 4
                self._rounded[key] = round_weight(linear.weight, seen, bits=bits)

        hooks = [linear.register_forward_pre_hook(see) for linear in linears]
        try:
            model(ids)
        finally:
            for hook in hooks:
                hook.remove()

    def _store(self, trace: Trace, weight: ir.Value, *, by_output: bool) -> _Blocks:
        """Put a weight's blocks among the weights; those of a tied one are equal bytes, which a bundle stores once."""
        assert weight.name is not None
        tensor = trace.weights[weight.name]
        matrix = tensor if by_output else tensor.t()
        rounded = self._rounded.get(tensor.data_ptr())
        if rounded is None or len(rounded.scales) != len(matrix):
            rounded = round_weight(matrix)
        N, K = matrix.shape
        scales = _add(trace, f"{weight.name}.scale", rounded.scales)
        _add(trace, f"{weight.name}.zero{FLAT}", rounded.flat_zeros)
        return _Blocks(
            bits=rounded.bits,
            rows=N,
            columns=K,
            codes=_add(trace, f"{weight.name}.codes", rounded.codes),
            table=_add(trace, f"{weight.name}.codes.rows", rounded.codes.flatten(1)),
            scales=scales,
            wide_scales=_widened(trace.graph, scales),
            zeros=_add(trace, f"{weight.name}.zero", rounded.zeros),
        )


@dataclass(frozen=True)
class _Blocks:
    """A weight (N,K) as the graph stores it."""

    bits: int
    rows: int
    columns: int
    codes: ir.Value  # as MatMulNBits reads them
    table: ir.Value  # the same bytes, as GatherBlockQuantized reads them
    scales: ir.Value
    wide_scales: ir.Value  # in float32
    zeros: ir.Value


def own_text(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(B,T) ids that are somewhat like text of the model's own: each drawn from its logits behind the drafts before it.

    Written all at once, again and again: a forward for each draft, not for each token.
    """
    generator = torch.Generator().manual_seed(0)
    drafts = []
    with torch.no_grad():
        for row in ids.split(1):  # logits are large
            draft = row.clone()
            for _ in range(REWRITINGS):
                probabilities = torch.softmax(model(draft)[0].float(), dim=-1)
                drawn = torch.multinomial(probabilities, 1, generator=generator).flatten()
                draft[0, 1:] = drawn[:-1]
            drafts.append(draft)
    return torch.cat(drafts)


def _add(trace: Trace, name: str, tensor: torch.Tensor) -> ir.Value:
    """A new weight."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.tensor_adapters.from_torch_dtype(tensor.dtype)),
        shape=ir.Shape(tensor.shape),
    )
    trace.weights[name] = tensor
    trace.graph.initializers[name] = value
    return value


def _widened(graph: ir.Graph, scales: ir.Value) -> ir.Value:
    """Scales in float32, in front of all nodes; ONNX Runtime computes them once, as it opens the graph."""
    if scales.dtype == ir.DataType.FLOAT:
        return scales
    cast = ir.node("Cast", [scales], {"to": ir.DataType.FLOAT})
    graph.insert_before(graph[0], cast)
    cast.outputs[0].shape, cast.outputs[0].type = scales.shape, ir.TensorType(ir.DataType.FLOAT)
    return cast.outputs[0]


def _multiply(graph: ir.Graph, node: ir.Node, weight: _Blocks) -> None:
    """MatMul with the weight, and the Add of a bias behind it, as one node."""
    inputs, replaced = [node.inputs[0], weight.codes, weight.wide_scales, weight.zeros], [node]
    if (found := add_of_bias(node.outputs[0])) is not None:
        add, bias = found
        inputs, replaced = [*inputs, None, bias], [node, add]
    attributes = {"K": weight.columns, "N": weight.rows, "bits": weight.bits, "block_size": BLOCK}
    fused = ir.node(QUANTIZED_MATMUL, inputs, {**attributes, "accuracy_level": INT8_INPUTS}, domain=MICROSOFT)
    graph.insert_before(node, fused)
    take_place(fused.outputs[0], replaced[-1].outputs[0])
    graph.remove(replaced, safe=True)


def _read_rows(graph: ir.Graph, node: ir.Node, weight: _Blocks) -> None:
    """Gather of rows of the table, in float32, cut to its columns where its blocks are longer."""
    tape = Tape()
    attributes = {"bits": weight.bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    inputs = [weight.table, node.inputs[1], weight.scales, weight.zeros]
    rows = tape.op(QUANTIZED_GATHER, inputs, attributes, domain=MICROSOFT)
    if weight.scales.dtype != ir.DataType.FLOAT:
        rows = tape.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    if weight.columns % BLOCK:
        shape = node.outputs[0].shape
        assert shape is not None, "the exporter infers every shape"
        rows.shape = ir.Shape([*shape[:-1], -(-weight.columns // BLOCK) * BLOCK])  # `decode` asks what is cut
        rows = tape.op("Slice", [rows, *(constant(tape, [bound]) for bound in (0, weight.columns, -1))])
    graph.insert_before(node, tape.nodes)
    take_place(rows, node.outputs[0])
    graph.remove(node, safe=True)
