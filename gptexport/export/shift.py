"""What a token takes of the one before, in a cached step: kept in the cache, as one layer more of keys and values.

nanochat's smear adds to each embedding some of the one before, which a step that sees the new tokens alone cannot
compute. So `decode` writes x (B,T,C) into a cache of its own, cut into heads as keys and values are, and reads there
what stands one place before each token. Rows that are rewound, kept or copied carry it along like everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.cached import CachedStep, CacheIndices, LayerCache
from gptexport.export.irtools import constant
from gptexport.export.sizes import length_axes


def shifts(graph: ir.Graph) -> list[ir.Node]:
    """Every Pad that moves x (B,T,C) on by one token, nothing before the first."""
    return [node for node in graph if node.op_type == "Pad" and _moves_on(node)]


def layers_needed(shift: ir.Node, n_kv_head: int, head_size: int) -> int:
    """How many layers' worth of cache hold a token's C numbers."""
    return -(-_width(shift) // (2 * n_kv_head * head_size))


def read_before(step: CachedStep, shift: ir.Node, layers: Sequence[LayerCache]) -> None:
    """Before: Pad(x). After: x is written into the cache, and read one place before each token; zeros at the first."""
    x, out = shift.inputs[0], shift.outputs[0]
    assert x is not None and x.dtype is not None
    shape = layers[0].past_key.shape
    assert shape is not None
    heads, size = shape[1], shape[3]
    assert isinstance(heads, int) and isinstance(size, int)
    indices = step.shared(CacheIndices(heads))
    before = step.shared(_IndicesBefore(heads))
    is_first = step.shared(_is_first)
    tape, found = Tape(), []
    for (past, present), part in zip(_sides(layers), _parts(tape, x, len(layers), heads, size), strict=True):
        written = tape.op("ScatterND", [past, indices, part], output=present)
        found.append(tape.op("GatherND", [written, before]))  # (B,heads,T,size)
    width = constant(tape, [0, 0, len(found) * heads * size])
    rows = [tape.op("Transpose", [part], {"perm": [0, 2, 1, 3]}) for part in found]
    joined = tape.op("Concat", rows, {"axis": 2})  # (B,T,parts * heads,size)
    flat = tape.op("Reshape", [joined, width])
    if len(found) * heads * size != _width(shift):
        flat = tape.op("Slice", [flat, constant(tape, [0]), constant(tape, [_width(shift)]), constant(tape, [2])])
    nothing = tape.op("Constant", [], {"value": ir.tensor(np.zeros((), x.dtype.numpy()), dtype=x.dtype)})
    result = tape.op("Where", [is_first, nothing, flat])
    result.type, result.shape = out.type, out.shape
    step.graph.insert_before(shift, tape.nodes)
    out.replace_all_uses_with(result)
    step.graph.remove(shift, safe=True)


def _sides(layers: Sequence[LayerCache]) -> Iterator[tuple[ir.Value, ir.Value]]:
    for layer in layers:
        yield layer.past_key, layer.present_key
        yield layer.past_value, layer.present_value


def _parts(tape: Tape, x: ir.Value, layers: int, heads: int, size: int) -> list[ir.Value]:
    """x (B,T,C) as what each side of each layer holds, (B,heads,T,size), filled up with zeros."""
    assert x.shape is not None and isinstance(x.shape[-1], int)
    count = 2 * layers
    missing = count * heads * size - x.shape[-1]
    whole = tape.op("Pad", [x, constant(tape, [0, 0, 0, 0, 0, missing])]) if missing else x
    cut = tape.op("Reshape", [whole, constant(tape, [0, 0, count * heads, size])])
    turned = tape.op("Transpose", [cut], {"perm": [0, 2, 1, 3]})  # (B,count * heads,T,size)
    bounds = [constant(tape, [part * heads]) for part in range(count + 1)]
    return [tape.op("Slice", [turned, low, high, constant(tape, [1])]) for low, high in pairwise(bounds)]


@dataclass(frozen=True)
class _IndicesBefore:
    """(B,n_kv_head,T,3): one place before each token's own; its own where there is none."""

    n_kv_head: int

    def __call__(self, step: CachedStep, tape: Tape) -> ir.Value:
        own = step.shared(CacheIndices(self.n_kv_head))
        return tape.op("Max", [tape.op("Sub", [own, constant(tape, [0, 0, 1])]), constant(tape, [0, 0, 0])])


def _is_first(step: CachedStep, tape: Tape) -> ir.Value:
    """(B,T,1) bool: whether a token is the first of its row."""
    first = tape.op("Equal", [step.positions, constant(tape, 0)])
    return tape.op("Unsqueeze", [first, constant(tape, [2])])


def _moves_on(node: ir.Node) -> bool:
    x, out = node.inputs[0], node.outputs[0]
    pads = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or x.shape is None or len(x.shape) != 3 or length_axes(x) != [1] or pads is None:
        return False
    if any(node.inputs[3:]) or node.attributes.get_string("mode", "constant") != "constant":
        return False
    if fill is not None and (fill.const_value is None or fill.const_value.numpy().any()):
        return False
    return pads.numpy().tolist() == [0, 1, 0, 0, -1, 0] and isinstance(x.shape[2], int) and out.shape is not None


def _width(shift: ir.Node) -> int:
    x = shift.inputs[0]
    if x is None or x.shape is None or not isinstance(x.shape[2], int):
        raise ExportError("what is shifted by a token has no known width")
    return x.shape[2]
