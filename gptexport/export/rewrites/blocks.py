"""`--quantize int4` and `int8w`: linear layers and embeddings in 4 or 8 bits, by blocks, for ONNX Runtime on a CPU.

Every logit reads the LM head last, so with 4 bits it keeps 8 where that costs little: where it is a small part of all.

com.microsoft's MatMulNBits reads blocks of weights with a scale and a zero point each, and quantizes what it multiplies
them by to 8 bits, in blocks as long, so that a row depends on no other. GatherBlockQuantized reads rows of the same
blocks. Scales are stored in float16 and widened as a graph is opened.

Which way a weight is rounded is decided by the inputs of its linear, seen on text that the model writes itself. Long
blocks are smaller and faster, and lose more: how much is seen on more of that text, and decides how long they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
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
from gptexport.export.rewrites.own_text import divergence, own_text
from gptexport.export.rewrites.rounding import BLOCKS, FLAT, Rounded, round_weight
from gptexport.export.rewrites.smoothing import calibration_ids, smooth_norms
from gptexport.export.trace import Trace
from gptexport.precision import INT8W
from gptexport.progress import seldom
from gptexport.recipe import Limits
from gptexport_runtime.contract.names import META_ACTIVATION_BLOCK

QUANTIZED_MATMUL, QUANTIZED_GATHER = "MatMulNBits", "GatherBlockQuantized"
INT8_INPUTS = 4  # accuracy_level: what is multiplied by the weights may be quantized to 8 bits
SMALL_HEAD = 0.1  # of the linears' weights: in 8 bits it makes a bundle at most a tenth larger
LONG, SHORT = BLOCKS[0], BLOCKS[-1]
ALLOWED = 0.5  # of the divergence that parity allows: so much may long blocks lose on text of the model's own
JUDGED = 2  # rows of that text


class Blocks:
    """The quantizer of int4 and int8w: see gptexport.precision.Quantizer.

    Args:
        bits: 4 or 8.
        kl_allowed: the mean KL divergence, in nats, that parity allows.
    """

    def __init__(self, bits: int, kl_allowed: float) -> None:
        self._bits, self._allowed = bits, kl_allowed
        self._rounded: dict[int, Rounded] = {}  # by where the weight lies in memory
        self._longest = LONG

    def prepare(
        self, model: nn.Module, architecture: Architecture, limits: Limits, progress: Callable[[str], None]
    ) -> list[str]:
        """Smooth the activations, and round the weight of every linear as the model runs."""
        notes = smooth_norms(model, architecture, limits)
        ids = calibration_ids(block_size=limits.block_size, vocab_size=limits.vocab_size)
        progress("writing text of the model's own, to round its weights by")
        text = own_text(model, ids)
        judged = own_text(model, ids[:JUDGED].flip(1))
        lost: dict[int, float] = {}
        for self._longest in (LONG, SHORT):
            progress(f"rounding weights to {self._bits} bits, in blocks of up to {self._longest}")
            self._rounded = {}
            self._round_linears(model, text, architecture.head, progress)
            longest = max((rounded.block for rounded in self._rounded.values()), default=SHORT)
            lost[longest] = divergence(model, self._rounded, judged)
            progress(f"blocks of {longest} lose a mean KL divergence of {lost[longest]:.1e} on such text")
            if lost[longest] <= ALLOWED * self._allowed or longest == SHORT:
                break
        return [*notes, *self._told(lost)]

    def quantize(self, trace: Trace) -> Audit:
        """Quantize every MatMul with a weight, and every table that tokens read rows of."""
        split_gemms(trace)
        graph = trace.graph
        matmuls = [node for node in graph if node.op_type == "MatMul" and linear_weight(trace, node.inputs[1])]
        gathers = embeddings(trace)
        stored: dict[tuple[ir.Value, bool], _Stored] = {}
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
        if stored:
            trace.model.metadata_props[META_ACTIVATION_BLOCK] = str(min(each.block for each in stored.values()))
        achieved = Counter(node.op_type for node in graph)
        return {
            **counted(QUANTIZED_MATMUL, len(matmuls), achieved[QUANTIZED_MATMUL]),
            **counted(QUANTIZED_GATHER, len(gathers), achieved[QUANTIZED_GATHER]),
        }

    def _told(self, lost: Mapping[int, float]) -> list[str]:
        """What a person should know of a model that long blocks do not do for. By the longest block, what it lost."""
        notes = [
            f"its weights are in blocks of {SHORT}: in blocks of up to {longest}, which are smaller and faster, they "
            f"lose a mean KL divergence of {amount:.1e} on text of the model's own, and {ALLOWED * self._allowed:.1e} "
            "is allowed"
            for longest, amount in lost.items()
            if longest != SHORT and SHORT in lost
        ]
        if not lost.get(SHORT, 0.0) <= self._allowed:
            notes.append(
                f"{self._bits} bits lose a mean KL divergence of {lost[SHORT]:.1e} of this model, on text of its own, "
                f"and parity allows {self._allowed}: --quantize {INT8W.name} loses less"
            )
        return notes

    @torch.no_grad()
    def _round_linears(
        self, model: nn.Module, ids: torch.Tensor, head: str | None, progress: Callable[[str], None]
    ) -> None:
        """Round each linear's weight by its inputs, which are gone when the next one runs."""
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        sizes = {linear.weight.data_ptr(): linear.weight.numel() for linear in linears}
        last = dict(model.named_parameters(remove_duplicate=False)).get(head or "")
        few = last is not None and last.numel() <= SMALL_HEAD * sum(sizes.values())
        now_and_then = seldom(progress)
        in_8_bits = last.data_ptr() if last is not None and few else None

        def see(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            assert isinstance(linear, nn.Linear)
            key = linear.weight.data_ptr()
            if key not in self._rounded:
                seen, bits = inputs[0].reshape(-1, inputs[0].shape[-1]), 8 if key == in_8_bits else self._bits
                self._rounded[key] = round_weight(linear.weight, seen, bits=bits, longest=self._longest)
                now_and_then(f"rounded {len(self._rounded)} of {len(sizes)} weights")

        hooks = [linear.register_forward_pre_hook(see) for linear in linears]
        try:
            model(ids)
        finally:
            for hook in hooks:
                hook.remove()

    def _store(self, trace: Trace, weight: ir.Value, *, by_output: bool) -> _Stored:
        """Put a weight's blocks among the weights; those of a tied one are equal bytes, which a bundle stores once."""
        assert weight.name is not None
        tensor = trace.weights[weight.name]
        matrix = tensor if by_output else tensor.t()
        rounded = self._rounded.get(tensor.data_ptr())
        if rounded is None or len(rounded.scales) != len(matrix):
            rounded = round_weight(matrix, bits=self._bits, longest=self._longest)
        N, K = matrix.shape
        scales = _add(trace, f"{weight.name}.scale", rounded.scales)
        _add(trace, f"{weight.name}.zero{FLAT}", rounded.flat_zeros)
        return _Stored(
            bits=rounded.bits,
            block=rounded.block,
            rows=N,
            columns=K,
            codes=_add(trace, f"{weight.name}.codes", rounded.codes),
            table=_add(trace, f"{weight.name}.codes.rows", rounded.codes.flatten(1)),
            scales=scales,
            wide_scales=_widened(trace.graph, scales),
            zeros=_add(trace, f"{weight.name}.zero", rounded.zeros),
        )


@dataclass(frozen=True)
class _Stored:
    """A weight (N,K) as the graph stores it."""

    bits: int
    block: int
    rows: int
    columns: int
    codes: ir.Value  # as MatMulNBits reads them
    table: ir.Value  # the same bytes, as GatherBlockQuantized reads them
    scales: ir.Value
    wide_scales: ir.Value  # in float32
    zeros: ir.Value


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


def _multiply(graph: ir.Graph, node: ir.Node, weight: _Stored) -> None:
    """MatMul with the weight, and the Add of a bias behind it, as one node."""
    inputs, replaced = [node.inputs[0], weight.codes, weight.wide_scales, weight.zeros], [node]
    if (found := add_of_bias(node.outputs[0])) is not None:
        add, bias = found
        inputs, replaced = [*inputs, None, bias], [node, add]
    attributes = {"K": weight.columns, "N": weight.rows, "bits": weight.bits, "block_size": weight.block}
    fused = ir.node(QUANTIZED_MATMUL, inputs, {**attributes, "accuracy_level": INT8_INPUTS}, domain=MICROSOFT)
    graph.insert_before(node, fused)
    take_place(fused.outputs[0], replaced[-1].outputs[0])
    graph.remove(replaced, safe=True)


def _read_rows(graph: ir.Graph, node: ir.Node, weight: _Stored) -> None:
    """Gather of rows of the table, in float32, cut to its columns where its blocks are longer."""
    tape = Tape()
    attributes = {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [weight.table, node.inputs[1], weight.scales, weight.zeros]
    rows = tape.op(QUANTIZED_GATHER, inputs, attributes, domain=MICROSOFT)
    if weight.scales.dtype != ir.DataType.FLOAT:
        rows = tape.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    if weight.columns % weight.block:
        shape = node.outputs[0].shape
        assert shape is not None, "the exporter infers every shape"
        rows.shape = ir.Shape(
            [*shape[:-1], -(-weight.columns // weight.block) * weight.block]
        )  # `decode` asks what is cut
        rows.type = ir.TensorType(ir.DataType.FLOAT)
        rows = tape.op("Slice", [rows, *(constant(tape, [bound]) for bound in (0, weight.columns, -1))])
    graph.insert_before(node, tape.nodes)
    take_place(rows, node.outputs[0])
    graph.remove(node, safe=True)
