"""What an attention node is: the one place that every target, and the head `decode`, asks.

Each answer is proved from the graph (operators, permutations, shapes, readers), never taken from a model's name.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import constant, input_of, only_reader, producer
from gptexport_runtime.contract.names import AXIS_B

OP_TYPE = "Attention"  # of ONNX, since opset 23
WINDOW = "window"  # in a node's `meta`, where its mask was evaluated and is one
HEADS_FIRST = [0, 2, 1, 3]  # (B,T,n_head,head_size) <-> (B,n_head,T,head_size)


@dataclass(frozen=True, eq=False)
class Attention:
    """One node. Sizes are those of the graph; n_head and n_kv_head differ where queries are grouped."""

    node: ir.Node
    query: ir.Value  # (B,n_head,T,head_size)
    key: ir.Value  # (B,n_kv_head,T,head_size)
    value: ir.Value  # (B,n_kv_head,T,head_size)
    n_head: int
    n_kv_head: int
    head_size: int

    @property
    def causal(self) -> bool:
        return self.node.attributes.get_int("is_causal", 0) == 1

    @property
    def masked(self) -> bool:
        """It takes a mask, or a cache, beside query, key and value."""
        return any(self.node.inputs[3:])

    @property
    def plain(self) -> bool:
        """Causality is all that it adds to softmax(scale * q @ k.T) @ v."""
        return self.causal and not self.masked and self.softcap == 0

    @property
    def window(self) -> int | None:
        """How many keys a query sees, its own among them, where a mask of such a window is all that it adds."""
        if self.softcap != 0 or any(self.node.inputs[4:]):
            return None
        return self.node.meta.get(WINDOW)

    @property
    def scale(self) -> float | None:
        """What scores are multiplied by; None: 1 / sqrt(head_size)."""
        return self.node.attributes["scale"].as_float() if "scale" in self.node.attributes else None

    @property
    def softcap(self) -> float:
        return self.node.attributes.get_float("softcap", 0.0)

    @property
    def packed(self) -> ir.Value | None:
        """(B,T,(n_head + 2 n_kv_head) * head_size): the projection that is split into q, k and v in this order."""
        parts = [side_by_side(heads) for heads in (self.query, self.key, self.value)]
        split = producer(parts[0])
        if split is None or split.op_type != "Split" or list(split.outputs) != parts:
            return None
        whole = split.inputs[0]
        width = (self.n_head + 2 * self.n_kv_head) * self.head_size
        return whole if whole is not None and _last_dim(whole) == width else None

    @property
    def merged(self) -> ir.Value | None:
        """(B,T,n_head * head_size) that the result becomes, heads side by side; None where it is read otherwise."""
        return flat_reader(self.node.outputs[0], self.n_head * self.head_size)


def flatten(tape: Tape, heads: ir.Value) -> ir.Value:
    """(B,T,n * head_size) of heads (B,n,T,head_size): what a projection made, where nothing was done to it since."""
    if (source := side_by_side(heads)) is not None:
        return source
    turned = heads.producer()
    if turned is not None and turned.op_type == "Transpose" and _perm(turned) == HEADS_FIRST:
        by_position = turned.inputs[0]
    else:
        by_position = tape.op("Transpose", [heads], {"perm": HEADS_FIRST})
    assert by_position is not None and heads.shape is not None
    _, n, _, size = heads.shape
    assert isinstance(n, int) and isinstance(size, int)
    flat = tape.op("Reshape", [by_position, constant(tape, [0, 0, n * size])])  # a width that can be inferred
    flat.type, flat.shape = heads.type, ir.Shape([heads.shape[0], heads.shape[2], n * size])
    return flat


def flat_reader(heads: ir.Value, width: int) -> ir.Value | None:
    """(B,T,width) that heads (B,n,T,head_size) become, one after the other; None where they are read otherwise."""
    turned = only_reader(heads)
    if turned is None or turned.op_type != "Transpose" or _perm(turned) != HEADS_FIRST:
        return None
    merged = only_reader(turned.outputs[0])
    if merged is None or merged.op_type != "Reshape":
        return None
    out = merged.outputs[0]
    return out if out.shape is not None and len(out.shape) == 3 and out.shape[-1] == width else None


def unflatten(tape: Tape, flat: ir.Value, n_head: int, head_size: int) -> ir.Value:
    """Heads (B,n_head,T,head_size) of the same side by side."""
    by_position = tape.op("Reshape", [flat, constant(tape, [0, 0, n_head, head_size])])
    return tape.op("Transpose", [by_position], {"perm": HEADS_FIRST})


def describe(node: ir.Node) -> Attention | None:
    """What an Attention node is; None where it is none, or where its sizes are not those of heads (B,n,T,size).

    Heads that are rows of the batch, (B * n,T,size), are not: a cache has a row for each row of the batch.
    """
    if node.op_type != OP_TYPE or node.domain != "" or len(node.inputs) < 3:
        return None
    q, k, v = node.inputs[:3]
    if q is None or k is None or v is None:
        return None
    sizes = [heads.shape[1::2] if heads.shape is not None and len(heads.shape) == 4 else () for heads in (q, k, v)]
    match sizes:
        case [(int(n_head), int(size)), (int(n_kv), int(key_size)), (int(n_v), int(value_size))]:
            if size == key_size == value_size and n_kv == n_v and str(_batch(q)) == AXIS_B:
                return Attention(node, q, k, v, n_head, n_kv, size)
    return None


def attentions(graph: ir.Graph) -> list[Attention]:
    """Every node that `describe` knows, in the order of the layers."""
    return [found for node in graph if (found := describe(node)) is not None]


def side_by_side(heads: ir.Value) -> ir.Value | None:
    """The (B,T,width) that was cut into heads (B,n,T,head_size), one head after the other."""
    turned = heads.producer()
    if turned is None or turned.op_type != "Transpose" or _perm(turned) != HEADS_FIRST:
        return None
    cut = turned.inputs[0]
    source = input_of(cut, "Reshape")
    if cut is None or source is None or source.shape is None or heads.shape is None or cut.shape is None:
        return None
    _, n, _, size = heads.shape
    whole = isinstance(n, int) and isinstance(size, int) and source.shape[-1] == n * size
    return source if whole and len(source.shape) == 3 and source.shape[:2] == cut.shape[:2] else None


def _batch(heads: ir.Value) -> int | ir.SymbolicDim | None:
    return heads.shape[0] if heads.shape is not None else None


def _perm(transpose: ir.Node) -> list[int]:
    return list(transpose.attributes["perm"].as_ints())


def _last_dim(value: ir.Value) -> int | ir.SymbolicDim | None:
    return value.shape[-1] if value.shape is not None else None
