"""The catalogue of deliberate faults that parity must catch, find and name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.faults import (
    Fault,
    constant,
    edit_weight,
    initializer,
    nodes,
    other_mask,
    replace_node,
    scale_weight,
    set_attribute,
    swap_blocks,
    through,
)


def quick_gelu(index: int) -> Fault:
    """x·sigmoid(1.702x), as CLIP has it."""

    def fault(model: onnx.ModelProto) -> None:
        factor = constant(model, "quick", 1.702)
        replace_node(
            "Gelu",
            index,
            lambda node: [
                helper.make_node("Mul", [node.input[0], factor], ["quick_x"]),
                helper.make_node("Sigmoid", ["quick_x"], ["quick_s"]),
                helper.make_node("Mul", [node.input[0], "quick_s"], [node.output[0]]),
            ],
        )(model)

    return fault


def one_head(index: int, head: int, factor: float, n_head: int) -> Fault:
    """The queries of one head of one attention, scaled: another slope of its softmax."""

    def fault(model: onnx.ModelProto) -> None:
        factors = np.ones((1, n_head, 1, 1), np.float32)
        factors[0, head] = factor
        name = constant(model, "slopes", factors)
        node = nodes(model, "Attention")[index]
        at = list(model.graph.node).index(node)
        model.graph.node.insert(at, helper.make_node("Mul", [node.input[0], name], ["sloped"]))
        node.input[0] = "sloped"

    return fault


def swap_inputs(op_type: str, index: int, a: int, b: int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        node = nodes(model, op_type)[index]
        node.input[a], node.input[b] = node.input[b], node.input[a]

    return fault


def heads_not_merged(index: int) -> Fault:
    """The transpose after attention is lost: what was (B,T,n_head,size) is read as if it were."""

    def fault(model: onnx.ModelProto) -> None:
        out = nodes(model, "Attention")[index].output[0]
        (node,) = (n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] == out)
        node.op_type = "Identity"
        del node.attribute[:]

    return fault


def approximate_softmax(index: int) -> Fault:
    """exp(x) as (1 + x/1024)^1024."""

    def fault(model: onnx.ModelProto) -> None:
        other_mask(index, 0)(model)  # makes m_mask, the causal one
        attention = nodes(model, "Attention")[index]
        (scale,) = (a.f for a in attention.attribute if a.name == "scale")
        c = {k: constant(model, f"s_{k}", v) for k, v in {"scale": scale, "low": -1e4, "n": 1024.0, "one": 1.0}.items()}
        last = constant(model, "s_last", [3], np.int64)
        make = helper.make_node

        def explicit(node: onnx.NodeProto) -> list[onnx.NodeProto]:
            q, k, v = node.input[:3]
            return [
                make("Transpose", [k], ["s_kT"], perm=[0, 1, 3, 2]),
                make("MatMul", [q, "s_kT"], ["s_qk"]),
                make("Mul", ["s_qk", c["scale"]], ["s_scores"]),
                make("Where", ["m_mask", "s_scores", c["low"]], ["s_masked"]),
                make("ReduceMax", ["s_masked", last], ["s_top"]),
                make("Sub", ["s_masked", "s_top"], ["s_x"]),
                make("Div", ["s_x", c["n"]], ["s_x_n"]),
                make("Add", ["s_x_n", c["one"]], ["s_1x"]),
                make("Relu", ["s_1x"], ["s_positive"]),
                make("Pow", ["s_positive", c["n"]], ["s_exp"]),
                make("ReduceSum", ["s_exp", last], ["s_sum"]),
                make("Div", ["s_exp", "s_sum"], ["s_p"]),
                make("MatMul", ["s_p", v], [node.output[0]]),
            ]

        replace_node("Attention", index, explicit)(model)

    return fault


def residual_add(model: onnx.ModelProto, block: int, *, mlp: bool) -> onnx.NodeProto:
    """The Add of a residual, found by the layer norm that reads it."""
    names = [f"transformer.h.{block}.ln_2.weight"] if not mlp else [
        f"transformer.h.{block + 1}.ln_1.weight", "transformer.ln_f.weight"
    ]  # fmt: skip
    norms = {node.input[1]: node for node in nodes(model, "LayerNormalization")}
    norm = next(norms[name] for name in names if name in norms)
    (made,) = (node for node in model.graph.node if norm.input[0] in node.output)
    return made


def residual(block: int, *, mlp: bool, keep: float = 1.0, branch: float = 1.0) -> Fault:
    """x + branch becomes keep·x + branch·branch."""

    def fault(model: onnx.ModelProto) -> None:
        node = residual_add(model, block, mlp=mlp)
        at = list(model.graph.node).index(node)
        for k, factor in enumerate((keep, branch)):
            if factor != 1.0:
                name = constant(model, f"r_{k}", factor)
                model.graph.node.insert(at, helper.make_node("Mul", [node.input[k], name], [f"r_{k}_scaled"]))
                node.input[k] = f"r_{k}_scaled"

    return fault


def skip_block(block: int) -> Fault:
    """What reads block's output reads its input instead."""

    def fault(model: onnx.ModelProto) -> None:
        out = residual_add(model, block, mlp=True).output[0]
        before = residual_add(model, block - 1, mlp=True).output[0]
        for node in model.graph.node:
            for k, name in enumerate(node.input):
                if name == out:
                    node.input[k] = before

    return fault


def late_positions(model: onnx.ModelProto) -> None:
    """Positions begin at 1 (and end at the last row of wpe)."""
    wpe = initializer(model, "transformer.wpe.weight")
    (gather,) = (n for n in nodes(model, "Gather") if n.input[0] == wpe.name)
    one, last = constant(model, "p_one", 1, np.int64), constant(model, "p_last", wpe.dims[0] - 1, np.int64)
    at = list(model.graph.node).index(gather)
    model.graph.node.insert(at, helper.make_node("Add", [gather.input[1], one], ["p_later"]))
    model.graph.node.insert(at + 1, helper.make_node("Min", ["p_later", last], ["p_clamped"]))
    gather.input[1] = "p_clamped"


def untied_head(model: onnx.ModelProto) -> None:
    """The head gets weights of its own, a little off the embedding's."""
    wte = initializer(model, "transformer.wte.weight")
    own = numpy_helper.to_array(wte).copy()
    own += 1e-3 * np.random.default_rng(0).normal(size=own.shape).astype(np.float32) * own.std()
    model.graph.initializer.append(numpy_helper.from_array(own, "lm_head.weight"))
    for node in model.graph.node:
        if node.op_type != "Gather":
            for k, name in enumerate(node.input):
                if name == wte.name:
                    node.input[k] = "lm_head.weight"


def scaled_logits(factor: float) -> Fault:
    """A temperature that was left in."""

    def fault(model: onnx.ModelProto) -> None:
        (node,) = (n for n in model.graph.node if "logits" in n.output)
        node.output[0] = "raw_logits"
        name = constant(model, "temperature", factor)
        model.graph.node.append(helper.make_node("Mul", ["raw_logits", name], ["logits"]))

    return fault


def rounded_to(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weight: weight.astype(dtype).astype(np.float32)


def to_int8(weight: np.ndarray) -> np.ndarray:
    """Per output channel, as dynamic quantization stores it."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    return np.round(weight / scale) * scale


def at(index: tuple[int, ...] | int, by: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(weight: np.ndarray) -> np.ndarray:
        made = weight.copy()
        made[index] += by
        return made

    return change


def row_by(row: int, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Not by an offset: one that is the same in every channel is what a layer norm takes away."""

    def change(weight: np.ndarray) -> np.ndarray:
        made = weight.copy()
        made[row] *= factor
        return made

    return change


def cyclic(weight: np.ndarray) -> np.ndarray:
    return np.roll(weight, 1, axis=0)


@dataclass(frozen=True)
class KnownFault:
    """A fault, where parity must find it, and what it must say of it."""

    what: str
    fault: Fault
    block: str  # or the module
    claim: str  # part of it; empty: nothing that parity has a name for, though it may say how the weights differ


def catalogue(n_head: int) -> list[KnownFault]:
    """Every fault, for a model of 4 layers or more."""
    half = onnx.TensorProto.FLOAT16
    epsilon = {"epsilon": 1e-6}
    usual = 12**-0.5  # 1/√head size
    rows = [
        ("GELU tanh for erf, every block", set_attribute("Gelu", None, approximate="tanh"), "h.0", "GELU tanh for erf"),
        ("GELU tanh for erf, one block", set_attribute("Gelu", 2, approximate="tanh"), "h.2", "GELU tanh for erf"),
        ("x·sigmoid(1.702x) for GELU, one block", quick_gelu(1), "h.1", "x·sigmoid(1.702x)"),
        ("epsilon 1e-6 for 1e-5, one LayerNorm", set_attribute("LayerNormalization", 0, **epsilon), "h.0", "epsilon"),
        ("epsilon 1e-6 for 1e-5, everywhere", set_attribute("LayerNormalization", None, **epsilon), "h.0", "epsilon"),
        ("attention scaled by 1/√C", set_attribute("Attention", 1, scale=usual / n_head**0.5), "h.1", "1/√C"),
        ("scale of attention × 1.01", set_attribute("Attention", 3, scale=usual * 1.01), "h.3", "scale of"),
        ("slope of one head × 1.01", one_head(1, 2, 1.01, n_head), "h.1", "in head 2"),
        ("mask one late: sees the next token", other_mask(2, +1), "h.2", "mask off by one"),
        ("mask one early: not the token itself", other_mask(None, -1), "h.0", "mask off by one"),
        ("no causal mask, last block", other_mask(3, None), "h.3", "no causal mask"),
        ("two blocks swapped", swap_blocks(1, 2), "h.1", "the weights of h.2"),
        ("a block skipped", skip_block(2), "h.2", "it is skipped"),
        ("square weight transposed", edit_weight("h.2.attn.c_proj.weight", np.transpose), "h.2", "transposed"),
        ("q and k exchanged", swap_inputs("Attention", 1, 0, 1), "h.1", "q, k, v read in the order k, q, v"),
        ("k and v exchanged", swap_inputs("Attention", 0, 1, 2), "h.0", "q, k, v read in the order q, v, k"),
        ("transpose after attention lost", heads_not_merged(2), "h.2", "heads not put side by side"),
        ("bias missing", scale_weight("h.0.mlp.c_fc.bias", 0), "h.0", "bias missing"),
        ("one element of a bias by 1e-3", edit_weight("h.2.attn.c_attn.bias", at(7, 1e-3)), "h.2", "1 of"),
        ("one element of a matrix by 1e-3", edit_weight("h.3.mlp.c_proj.weight", at((5, 9), 1e-3)), "h.3", "1 of"),
        ("one element of a bias by 1e-5", edit_weight("h.1.mlp.c_proj.bias", at(7, 1e-5)), "h.1", "1 of"),
        ("one matrix by 1e-3", scale_weight("h.1.mlp.c_fc.weight", 1.001), "h.1", "weights multiplied by 1.001"),
        ("one matrix by 1e-5", scale_weight("h.2.attn.c_proj.weight", 1.00001), "h.2", "weights multiplied by 1.00001"),
        ("head not tied", untied_head, "lm_head", "a head of its own"),
        ("rows of wpe one late", edit_weight("wpe.weight", cyclic), "wpe", "off by -1"),
        ("positions begin at 1", late_positions, "before wpe", "off by +1"),
        ("one token's embedding × 1.01", edit_weight("wte.weight", row_by(42, 1.01)), "wte", "row 42"),
        ("last row of wpe × 1.01", edit_weight("wpe.weight", row_by(-1, 1.01)), "wpe", "row "),
        ("float16 after one attention", through(half, "Attention", 1), "h.1", "float16"),
        ("float16 after one GELU", through(half, "Gelu", 3), "h.3", "float16"),
        ("one matrix in float16", edit_weight("h.2.mlp.c_fc.weight", rounded_to(np.float16)), "h.2", "rounded to"),
        ("one matrix in int8", edit_weight("h.0.attn.c_attn.weight", to_int8), "h.0", ""),
        ("approximate softmax", approximate_softmax(1), "h.1", ""),
        ("residual dropped", residual(2, mlp=False, keep=0.0), "h.2", "is dropped"),
        ("branch of an MLP × 0.35", residual(1, mlp=True, branch=8**-0.5), "h.1", "multiplied by 0.35355"),
        ("gain of ln_f missing", edit_weight("ln_f.weight", np.ones_like), "ln_f", "without its gain"),
        ("bias of one LayerNorm missing", scale_weight("h.3.ln_2.bias", 0), "h.3", "without its bias"),
        ("logits × 1.0001", scaled_logits(1.0001), "logits", "multiplied by 1.0001"),
        ("logits × 1.00001", scaled_logits(1.00001), "logits", "multiplied by 1.00001"),
        ("one NaN in a weight", edit_weight("h.1.ln_2.weight", at(3, np.nan)), "h.1", "NaN"),
    ]  # fmt: skip
    return [KnownFault(*row) for row in rows]
