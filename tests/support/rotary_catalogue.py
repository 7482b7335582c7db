"""Deliberate faults of what Llama and nanochat have and GPT-2 has not: rotary positions, key heads, gates, caps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.fault_catalogue import KnownFault, swap_inputs
from tests.support.faults import (
    Fault,
    constant,
    edit_weight,
    initializer,
    nodes,
    replace_node,
    set_attribute,
    swap_blocks,
)

QUERIES, KEYS = 0, 1  # of an Attention's inputs


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """A weight by its whole name."""
    return edit_weight(name, change, prefix="")


def angles(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """Other angles (T,pairs) in the rotary tables; the sign of the sine stays."""

    def fault(model: onnx.ModelProto) -> None:
        cosine, sine = (initializer(model, f"model.{name}") for name in ("cos", "sin"))
        made = change(np.arctan2(*(numpy_helper.to_array(t).astype(np.float64) for t in (sine, cosine))))
        for tensor, values in ((cosine, np.cos(made)), (sine, np.sin(made))):
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))

    return fault


def based_on(base: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(found: np.ndarray) -> np.ndarray:
        T, pairs = found.shape
        return np.sign(found[1, 0]) * np.outer(np.arange(T), base ** -(np.arange(pairs) / pairs))

    return change


def maker(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    (node,) = (n for n in model.graph.node if value in n.output)
    return node


def insert(model: onnx.ModelProto, before: onnx.NodeProto, *made: onnx.NodeProto) -> None:
    at = list(model.graph.node).index(before)
    for offset, node in enumerate(made):
        model.graph.node.insert(at + offset, node)


def gather(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, order: list[int], axis: int) -> None:
    """What a node reads, in another order along an axis."""
    name = f"{node.input[slot]}.{axis}.{len(model.graph.node)}"
    index = constant(model, f"{name}.index", order, np.int64)
    insert(model, node, helper.make_node("Gather", [node.input[slot], index], [name], axis=axis))
    node.input[slot] = name


def rotation(model: onnx.ModelProto, index: int, whose: int) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The Split and the Concat between which the queries or keys of an attention are turned."""
    value = nodes(model, "Attention")[index].input[whose]
    while maker(model, value).op_type != "Concat":
        value = maker(model, value).input[0]
    joined = maker(model, value)
    half = maker(model, maker(model, joined.input[0]).input[0])
    return maker(model, half.input[0]), joined


def other_pairs(index: int, size: int) -> Fault:
    """Neighbours are turned, where halves are right."""

    def fault(model: onnx.ModelProto) -> None:
        to_halves = [*range(0, size, 2), *range(1, size, 2)]
        for whose in (QUERIES, KEYS):
            split, joined = rotation(model, index, whose)
            gather(model, split, 0, to_halves, 3)
            (reader,) = (n for n in model.graph.node if joined.output[0] in n.input)
            gather(model, reader, list(reader.input).index(joined.output[0]), np.argsort(to_halves).tolist(), 3)

    return fault


def not_turned(index: int, whose: int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        split, joined = rotation(model, index, whose)
        (reader,) = (n for n in model.graph.node if joined.output[0] in n.input)
        reader.input[list(reader.input).index(joined.output[0])] = split.input[0]

    return fault


def later(index: int, whose: int) -> Fault:
    """Turned as if one position later."""

    def fault(model: onnx.ModelProto) -> None:
        split, _ = rotation(model, index, whose)
        position = next(n for n in nodes(model, "Gather") if n.input[0] == "model.cos").input[1]
        axis, one = constant(model, "late_axis", [1], np.int64), constant(model, "late_one", 1, np.int64)
        made = [helper.make_node("Add", [position, one], ["late"])]
        for name in ("cos", "sin"):
            made += [
                helper.make_node("Gather", [f"model.{name}", "late"], [f"late_{name}_rows"]),
                helper.make_node("Unsqueeze", [f"late_{name}_rows", axis], [f"late_{name}"]),
            ]
        insert(model, split, *made)
        for node in nodes(model, "Mul"):
            if node.input[0] in split.output:
                table = maker(model, maker(model, node.input[1]).input[0]).input[0]
                node.input[1] = f"late_{table.removeprefix('model.')}"

    return fault


def normed_late(index: int) -> Fault:
    """Queries and keys are turned first and normed then, each by its gain."""

    def fault(model: onnx.ModelProto) -> None:
        for whose in (QUERIES, KEYS):
            split, joined = rotation(model, index, whose)
            norm = maker(model, split.input[0])
            attention = nodes(model, "Attention")[index]
            split.input[0], norm.input[0], attention.input[whose] = norm.input[0], joined.output[0], norm.output[0]
            model.graph.node.remove(norm)
            insert(model, attention, norm)

    return fault


def other_key_heads(index: int, order: list[int]) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        attention = nodes(model, "Attention")[index]
        (reader,) = (n for n in model.graph.node if attention.output[0] in n.input)
        gather(model, attention, QUERIES, order, 1)
        gather(model, reader, 0, np.argsort(order).tolist(), 1)

    return fault


def window(index: int, size: int) -> Fault:
    """Of an attention that has one: `size` keys."""

    def fault(model: onnx.ModelProto) -> None:
        mask = maker(model, nodes(model, "Attention")[index].input[3])
        (bound,) = (m for m in (maker(model, value) for value in mask.input) if m.op_type == "Less")
        bound.input[1] = constant(model, "other_window", size, np.int64)

    return fault


def gate_and_up_exchanged(index: int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        sigmoid = nodes(model, "Sigmoid")[index]
        gate = sigmoid.input[0]
        (silu,) = (n for n in nodes(model, "Mul") if sigmoid.output[0] in n.input)
        (product,) = (n for n in nodes(model, "Mul") if silu.output[0] in n.input)
        up = next(value for value in product.input if value != silu.output[0])
        made = [
            helper.make_node("Sigmoid", [up], ["exchanged_s"]),
            helper.make_node("Mul", [up, "exchanged_s"], ["exchanged"]),
            helper.make_node("Mul", ["exchanged", gate], [product.output[0]]),
        ]
        insert(model, product, *made)
        model.graph.node.remove(product)

    return fault


def other_activation(index: int, op_type: str) -> Fault:
    """In place of the SiLU of one MLP."""

    def fault(model: onnx.ModelProto) -> None:
        sigmoid = nodes(model, "Sigmoid")[index]
        (silu,) = (n for n in nodes(model, "Mul") if sigmoid.output[0] in n.input)
        silu.op_type = op_type
        del silu.input[1:]
        silu.input[0] = sigmoid.input[0]

    return fault


def exchange(a: str, b: str) -> Fault:
    """Two weights."""

    def fault(model: onnx.ModelProto) -> None:
        one, other = initializer(model, a), initializer(model, b)
        first, second = numpy_helper.to_array(one).copy(), numpy_helper.to_array(other).copy()
        one.CopyFrom(numpy_helper.from_array(second, one.name))
        other.CopyFrom(numpy_helper.from_array(first, other.name))

    return fault


def without_mean(index: int) -> Fault:
    """LayerNorm for RMSNorm."""

    def norm(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        (epsilon,) = (a.f for a in node.attribute if a.name == "epsilon")
        return [helper.make_node("LayerNormalization", list(node.input), list(node.output), epsilon=epsilon)]

    return replace_node("RMSNormalization", index, norm)


def renamed(op_type: str, other: str, index: int = 0) -> Fault:
    """One node for another of as many inputs."""

    def fault(model: onnx.ModelProto) -> None:
        nodes(model, op_type)[index].op_type = other

    return fault


def softcap(cap: float) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        (tanh,) = nodes(model, "Tanh")
        name = constant(model, "other_cap", cap)
        (after,) = (n for n in model.graph.node if tanh.output[0] in n.input)
        for node in (maker(model, tanh.input[0]), after):
            node.input[1] = name

    return fault


def plus_one(weight: np.ndarray) -> np.ndarray:
    return weight + 1


def llama_catalogue() -> list[KnownFault]:
    """For Qwen3's shape: 4 layers, 4 heads of 16 over 2 key heads, a window of 6 keys in the last two, base 10000."""
    layer = "model.layers.{}".format
    attn, mlp = "self_attn before o_proj", "mlp before down_proj"
    epsilon = {"epsilon": 1e-6}
    q_norm = f"{layer(1)}.self_attn.q_norm.weight"
    rows = [
        ("rotary base 500000", angles(based_on(5e5)), f"layers.0.{attn}", "rotary base 500000 for 10000"),
        ("rotary base 1000000", angles(based_on(1e6)), f"layers.0.{attn}", "rotary base 1e+06 for 10000"),
        ("turned the other way", edit("model.sin", np.negative), f"layers.0.{attn}", "turned the other way"),
        ("not turned at all", angles(np.zeros_like), f"layers.0.{attn}", "no rotary positions"),
        ("neighbours for halves", other_pairs(1, 16), f"layers.1.{attn}", "rotary pairs (2j, 2j+1)"),
        ("keys one position later", later(2, KEYS), f"layers.2.{attn}", "rotary positions of keys off by +1"),
        ("queries one position later", later(0, QUERIES), f"layers.0.{attn}", "rotary positions of keys off by -1"),
        ("keys not turned", not_turned(1, KEYS), f"layers.1.{attn}", "keys without rotary positions"),
        ("epsilon 1e-6 for 1e-5", set_attribute("RMSNormalization", None, **epsilon), "layers.0", "RMSNorm epsilon"),
        ("gain plus one", edit(f"{layer(2)}.input_layernorm.weight", plus_one), "layers.2", "gain 1 + weight"),
        ("gain plus one, final", edit("model.norm.weight", plus_one), "norm", "gain 1 + weight"),
        ("gain of queries missing", edit(q_norm, np.ones_like), "layers.1", "without its gain"),
        ("LayerNorm for RMSNorm", without_mean(4), "layers.1", "the mean is subtracted"),
        ("normed after turning", normed_late(1), "layers.1", "turned by its position already here"),
        ("window one wider", window(2, 7), f"layers.2.{attn}", "window of 7 keys for 6"),
        ("window one narrower", window(3, 5), f"layers.2.{attn}", "window of 5 keys for 6"),
        ("no window", window(2, 1000), f"layers.2.{attn}", "no window"),
        ("key heads in another order", other_key_heads(1, [0, 2, 1, 3]), f"layers.1.{attn}", "key heads in another"),
        ("gate and up exchanged", gate_and_up_exchanged(1), f"layers.1.{mlp}", "gate and up exchanged"),
        (
            "weights of gate and up exchanged",
            exchange(f"{layer(2)}.mlp.gate_proj.weight", f"{layer(2)}.mlp.up_proj.weight"),
            "layers.2.mlp",
            "the weights of layers.2.mlp.up_proj",
        ),
        ("GELU for SiLU", other_activation(2, "Gelu"), f"layers.2.{mlp}", "GELU erf for SiLU"),
        ("ReLU for SiLU", other_activation(0, "Relu"), f"layers.0.{mlp}", "ReLU for SiLU"),
        ("keys and values exchanged", swap_inputs("Attention", 1, 1, 2), "layers.1", "read in the order q, v, k"),
        ("two layers swapped", swap_blocks(1, 2, "layers"), "layers.1", "the weights of layers.2"),
        ("scale × 1.01", set_attribute("Attention", 0, scale=1.01 / 4), f"layers.0.{attn}", "scale of attention"),
    ]  # fmt: skip
    return [KnownFault(*row) for row in rows]


def nanochat_catalogue() -> list[KnownFault]:
    """For the newest: 5 layers, 4 heads of 16 over 2 key heads, a window of 129 keys in all but two of them."""
    attn, block = "attn before c_proj", "transformer.h.{}.".format
    rows = [
        ("rotary base 10000", angles(based_on(1e4)), f"h.0.{attn}", "rotary base 10000 for 100000"),
        ("turned as Llama turns", edit("model.sin", np.negative), f"h.0.{attn}", "turned the other way"),
        ("neighbours for halves", other_pairs(1, 16), f"h.1.{attn}", "rotary pairs (2j, 2j+1)"),
        ("keys one position later", later(3, KEYS), f"h.3.{attn}", "rotary positions of keys off by +1"),
        ("no gain of queries and keys", set_attribute("Attention", None, scale=0.25), f"h.0.{attn}", "1/√head size"),
        ("window one wider", window(1, 130), f"h.0.{attn}", "window of 130 keys for 129"),
        ("key heads in another order", other_key_heads(4, [0, 2, 1, 3]), f"h.4.{attn}", "key heads in another"),
        ("softcap missing", renamed("Tanh", "Identity"), "logits", "no softcap"),
        ("softcap 20 for 15", softcap(20.0), "logits", "softcap multiplied by 1.33333"),
        ("ReLU not squared", renamed("Pow", "Add", 1), "h.1.mlp before c_proj", ""),
        ("no smear", edit("smear_lambda", np.zeros_like), "h.0 before attn", "is dropped"),
        ("no backout", edit("backout_lambda", np.zeros_like), "before lm_head", ""),
        ("no value embedding", edit("value_embeds.2.weight", np.zeros_like), "value_embeds.2", ""),
        ("epsilon 1e-5", set_attribute("RMSNormalization", 1, epsilon=1e-5), "h.0", "RMSNorm epsilon 1e-05"),
        ("one matrix by 1e-3", edit(f"{block(3)}mlp.c_fc.weight", lambda w: w * 1.001), "h.3", "multiplied by 1.001"),
    ]  # fmt: skip
    return [KnownFault(*row) for row in rows]
