"""Deliberate faults for any graph, each at a place drawn by chance."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.support.faults import insert_after, nodes, other_mask

# Where the fault is put is drawn; False: the graph has no such place.
DrawnFault = Callable[[ModelProto, random.Random], bool]


def _weights(model: ModelProto, rank: int) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == rank]


def _edit(rank: int, change: Callable[[np.ndarray, random.Random], np.ndarray]) -> DrawnFault:
    """Change one weight of a rank."""

    def fault(model: ModelProto, draw: random.Random) -> bool:
        found = [t for t in _weights(model, rank) if max(t.dims) > 1]
        if found:
            tensor = draw.choice(found)
            made = change(numpy_helper.to_array(tensor).copy(), draw).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
        return bool(found)

    return fault


def _a_row(change: Callable[[np.ndarray, np.ndarray], None]) -> DrawnFault:
    """Change one or two rows of a matrix, which an embedding or a linear reads."""

    def fault(w: np.ndarray, draw: random.Random) -> np.ndarray:
        i, j = draw.sample(range(len(w)), 2)
        a, b = w[i].copy(), w[j].copy()
        change(a, b)
        w[i], w[j] = a, b
        return w

    return _edit(2, fault)


def _swap(a: np.ndarray, b: np.ndarray) -> None:
    a[:], b[:] = b.copy(), a.copy()


def _negate(a: np.ndarray, _b: np.ndarray) -> None:
    a *= -1


def _in_bfloat16(w: np.ndarray, _draw: random.Random) -> np.ndarray:
    return (w.view(np.uint32) & 0xFFFF0000).view(np.float32)


def _scores(factor: float) -> DrawnFault:
    """Queries of one attention times a factor: another slope of its softmax."""

    def fault(model: ModelProto, draw: random.Random) -> bool:
        found = nodes(model, "Attention")
        if found:
            node = draw.choice(found)
            at = list(model.graph.node).index(node)
            model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "slope"))
            model.graph.node.insert(at, helper.make_node("Mul", [node.input[0], "slope"], ["sloped"]))
            node.input[0] = "sloped"
        return bool(found)

    return fault


def _sees_the_future(model: ModelProto, draw: random.Random) -> bool:
    found = [
        i
        for i, node in enumerate(nodes(model, "Attention"))
        if any(a.name == "is_causal" and a.i for a in node.attribute)
    ]
    if found:
        other_mask(draw.choice(found), None)(model)
    return bool(found)


def _loses_a_residual(model: ModelProto, draw: random.Random) -> bool:
    """A sum of two values, neither a weight, becomes its second."""
    constants = {t.name for t in model.graph.initializer} | {n.output[0] for n in nodes(model, "Constant")}
    found = [node for node in nodes(model, "Add") if not constants & set(node.input)]
    if found:
        node = draw.choice(found)
        node.op_type = "Identity"
        del node.input[0]
    return bool(found)


def _another_activation(model: ModelProto, draw: random.Random) -> bool:
    found = [*nodes(model, "Gelu"), *nodes(model, "Relu"), *nodes(model, "Sigmoid")]
    if found:
        node = draw.choice(found)
        if node.op_type == "Gelu":
            tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "none" if tanh else "tanh"))
        else:
            node.op_type = "Elu" if node.op_type == "Relu" else "HardSigmoid"
    return bool(found)


def _another_eps(model: ModelProto, draw: random.Random) -> bool:
    """A norm's eps a hundred times larger, as an attribute or as a number that is added."""
    attributes = [a for node in model.graph.node for a in node.attribute if a.name == "epsilon" and a.f > 0]
    small = [t for t in _scalars(model) if 0 < numpy_helper.to_array(t).item() <= 1e-4]
    if attributes:
        draw.choice(attributes).f *= 100
    elif small:
        _times(draw.choice(small), 100)
    return bool(attributes or small)


def _another_number(model: ModelProto, draw: random.Random) -> bool:
    """A number of the forward, off by a hundredth."""
    found = [t for t in _scalars(model) if np.isfinite(v := numpy_helper.to_array(t).item()) and 1e-3 < abs(v) < 1e3]
    if found:
        _times(draw.choice(found), 1.01)
    return bool(found)


def _scalars(model: ModelProto) -> list[TensorProto]:
    inside = [a.t for node in nodes(model, "Constant") for a in node.attribute if a.name == "value"]
    floats = [t for t in (*model.graph.initializer, *inside) if t.data_type == TensorProto.FLOAT]
    return [t for t in floats if int(np.prod(t.dims)) == 1]


def _times(tensor: TensorProto, factor: float) -> None:
    made = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))


def _in_float16(model: ModelProto, draw: random.Random) -> bool:
    """What a matrix product gives, rounded to float16."""

    def cast(old: str, new: str) -> list[NodeProto]:
        half = helper.make_node("Cast", [old], [f"{old}.half"], to=TensorProto.FLOAT16)
        return [half, helper.make_node("Cast", [f"{old}.half"], [new], to=TensorProto.FLOAT)]

    found = [node for node in nodes(model, "MatMul") if node.output[0] != model.graph.output[0].name]
    if found:
        insert_after(model, draw.choice(found).output[0], cast)
    return bool(found)


FAULTS: dict[str, DrawnFault] = {
    "a matrix 0.1 % larger": _edit(2, lambda w, _: w * 1.001),
    "a row of a matrix negated": _a_row(_negate),
    "two rows of a matrix exchanged": _a_row(_swap),
    "a matrix cut to bfloat16": _edit(2, _in_bfloat16),
    "a vector 0.1 % larger": _edit(1, lambda w, _: w * 1.001),
    "a vector cut to bfloat16": _edit(1, _in_bfloat16),
    "scores 1 % steeper": _scores(1.01),
    "the future is seen": _sees_the_future,
    "a residual lost": _loses_a_residual,
    "another activation": _another_activation,
    "another eps": _another_eps,
    "a number 1 % larger": _another_number,
    "a product in float16": _in_float16,
}
