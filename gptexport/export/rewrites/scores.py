"""What a softmax's input is of a product q @ k.T: its scale, its softcap and its mask, found out by evaluating them.

Between product and softmax people scale, cap, add and choose, in any order and many spellings. All of it is affine in
the scores but for the tanh of a softcap, and what it multiplies and adds depends on sizes alone. So it is run for
scores of 0 and of 1: the first gives what is added, the mask, and the difference the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.irtools import constant
from gptexport.export.masks import HIDDEN, MOST_POSITIONS
from gptexport.export.sizes import Sizes
from gptexport_runtime.contract.names import AXIS_B, AXIS_T

Floats = NDArray[np.floating[Any]]
AFFINE = {"Add", "Cast", "Div", "Identity", "Mul", "Neg", "Reshape", "Sub", "Where"}
SAME = 1e-5  # relative: two factors are one


@dataclass(frozen=True, eq=False)
class _Step:
    """A node between product and softmax, and which of its inputs is the scores."""

    node: ir.Node
    index: int


@dataclass(frozen=True, eq=False)
class Scores:
    """softmax(scale * softcapped(q @ k.T) + added)."""

    query: ir.Value  # (...,T,size)
    turned_key: ir.Value  # (...,size,T)
    scale: float
    per_head: Floats | None  # (n,1,1) that queries are multiplied by besides, where heads have scales of their own
    softcap: float  # 0: none
    added: Floats  # (...,T,T) at T = block_size and B = 1
    _steps: Sequence[_Step]

    @property
    def seen(self) -> NDArray[np.bool_]:
        return np.asarray(self.added > HIDDEN)

    @property
    def weighs(self) -> bool:
        """What is seen has something added to it."""
        return bool(self.added[self.seen].any())

    @property
    def sees_all(self) -> bool:
        return bool(self.seen.all())

    @property
    def causal(self) -> bool:
        T = self.added.shape[-1]
        return not self.weighs and bool((self.seen == np.tri(T, dtype=bool)).all())

    def mask(self, tape: Tape) -> ir.Value:
        """The mask (..., T,T) as the graph computes it: true where a position is seen, or added."""
        dtype = self.query.dtype
        assert dtype is not None
        value = _again(tape, self._steps, constant(tape, 0, dtype))
        if not self.weighs:
            value = tape.op("Greater", [value, constant(tape, int(HIDDEN), dtype)])
            dtype = ir.DataType.BOOL
        lead: list[int | str] = list(self.added.shape[:-2])
        if len(lead) == 2 and any(_by_row(step) for step in self._steps):
            lead[0] = AXIS_B
        if len(lead) == 1:  # of heads: the node wants an axis of rows too
            value = tape.op("Unsqueeze", [value, constant(tape, [0])])
            lead = [1, *lead]
        value.type, value.shape = ir.TensorType(dtype), ir.Shape([*lead, AXIS_T, AXIS_T])
        return value


def take_apart(sizes: Sizes, softmax: ir.Node, block_size: int) -> Scores:
    """Follow the scores from the softmax back to their product.

    Raises:
        ExportError: something else is on the way; the message says what.
    """
    if block_size > MOST_POSITIONS:
        raise ExportError(f"its mask has {block_size} x {block_size} numbers, too many to look at")
    if not _over_keys(softmax):
        raise ExportError("its softmax is not over the last axis")
    product, steps = _path(sizes, softmax)
    query, turned_key = product.inputs
    assert query is not None and turned_key is not None
    caps = [number for number, step in enumerate(steps) if step.node.op_type == "Tanh"]
    if len(caps) > 1:
        raise ExportError("tanh is applied to its scores twice")
    after = steps[caps[0] + 1 :] if caps else steps
    added, scale, per_head = _affine(sizes, after, block_size)
    softcap = 0.0
    if caps:
        shift, inner, inner_per_head = _affine(sizes, steps[: caps[0]], block_size)
        if per_head is not None or inner_per_head is not None or shift.any():
            raise ExportError("something is added to its scores, or scales each head, inside of the softcap")
        softcap, scale = scale, inner * scale
    return Scores(query, turned_key, scale, per_head, softcap, added, after)


def _over_keys(softmax: ir.Node) -> bool:
    value = softmax.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return softmax.attributes.get_int("axis", -1) in (-1, rank - 1)


def _path(sizes: Sizes, softmax: ir.Node) -> tuple[ir.Node, list[_Step]]:
    """The product, and the nodes between it and the softmax, in order."""
    on_tokens = sizes.on_tokens
    value, steps = softmax.inputs[0], []
    while (node := value.producer() if value is not None else None) is not None and node.op_type != "MatMul":
        if node.op_type not in AFFINE and node.op_type != "Tanh":
            raise ExportError(f"{node.op_type} is applied to its scores")
        indices = [index for index, source in enumerate(node.inputs) if source in on_tokens]
        if node.op_type == "Reshape":
            _check_reshape(node)
            indices = [0]
        if len(indices) != 1 or (node.op_type, indices[0]) in (("Div", 1), ("Where", 0)):
            raise ExportError(f"{node.op_type} joins its scores with what depends on the tokens")
        steps.append(_Step(node, indices[0]))
        value = node.inputs[indices[0]]
    if node is None:
        raise ExportError("its scores are no product of queries and keys")
    return node, steps[::-1]


def _check_reshape(node: ir.Node) -> None:
    """Rows and heads, in one axis or in two; (T,T) stays."""
    shapes = [value.shape for value in (node.inputs[0], node.outputs[0]) if value is not None]
    if any(shape is None or [str(dim) for dim in shape[-2:]] != [AXIS_T, AXIS_T] for shape in shapes):
        raise ExportError("its scores are reshaped")


def _affine(sizes: Sizes, steps: Sequence[_Step], T: int) -> tuple[Floats, float, Floats | None]:
    """What the steps add to scores, as far as (T,T), the factor that they multiply them by, and one for each head."""
    if any(_folded(step) for step in steps):
        raise ExportError("its mask has rows and heads in one axis")
    zero, one = (_at(sizes, steps, scores, T) for scores in (0.0, 1.0))
    zero = np.broadcast_to(zero, (*zero.shape[:-2], T, T))
    one = np.broadcast_to(one, zero.shape) if one.ndim <= zero.ndim else one
    with np.errstate(invalid="ignore"):
        factors = np.where(zero > HIDDEN, one - zero, np.nan)
    exact = np.where(zero > HIDDEN, np.abs(zero), np.inf)
    scale = float(factors.reshape(-1)[exact.argmin()])
    off = np.abs(factors - scale) - 1e-6 * exact  # of a sum with what is added, rounding
    if not np.nanmax(off) > SAME * abs(scale):
        return zero, scale, None
    if factors.ndim < 3 or factors.shape[:-3] not in ((), (1,)):
        raise ExportError("its scores have a scale of their own for each position")
    heads = factors.reshape(factors.shape[-3], -1)
    per_head = np.nanmean(heads, axis=1)
    if (np.nanmax(np.abs(heads - per_head[:, None]), axis=1) > SAME * np.abs(per_head)).any():
        raise ExportError("its scores have a scale of their own for each position")
    return zero, 1.0, per_head.reshape(-1, 1, 1).astype(np.float32)


def _at(sizes: Sizes, steps: Sequence[_Step], scores: float, T: int) -> Floats:
    """What the steps make of scores that are all the same, at least (1,1)."""
    tape = Tape()
    start = tape.op("Constant", [], {"value": ir.tensor(np.array(scores, np.float32))})
    if steps:
        first = steps[0].node.inputs[steps[0].index]
        assert first is not None and first.dtype is not None
        start = tape.op("Cast", [start], {"to": first.dtype})
    result = _again(tape, steps, start)
    for number, node in enumerate(tape.nodes):
        node.outputs[0].name = f"probe.{number}"
    return np.atleast_2d(sizes.evaluate(result, T=T).astype(np.float64))


def _again(tape: Tape, steps: Sequence[_Step], start: ir.Value) -> ir.Value:
    """The steps, of something else than the scores. They act on each number alone, so what is reshaped need not be."""
    value = start
    for step in steps:
        if step.node.op_type == "Reshape":
            continue
        inputs = [value if index == step.index else source for index, source in enumerate(step.node.inputs)]
        attributes = {name: attribute.value for name, attribute in step.node.attributes.items()}
        value = tape.op(step.node.op_type, inputs, attributes)
        value.type = step.node.outputs[0].type
    return value


def _others(step: _Step) -> Iterator[ir.Value]:
    if step.node.op_type != "Reshape":
        yield from (source for index, source in enumerate(step.node.inputs) if index != step.index and source)


def _folded(step: _Step) -> bool:
    """It combines scores with a value whose first axis has rows and heads."""
    return any(
        value.shape is not None and len(value.shape) > 2 and AXIS_B in str(value.shape[0]) != AXIS_B
        for value in _others(step)
    )


def _by_row(step: _Step) -> bool:
    """It combines scores with a value that has an axis of rows, (B,...)."""
    return any(
        value.shape is not None and len(value.shape) == 4 and str(value.shape[0]) == AXIS_B for value in _others(step)
    )
