"""Deliberate faults, put into an exported graph: what parity must catch, and where it must find it.

A fault is a function that edits an onnx.ModelProto in place, whose weights are inside and named as in the state_dict.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Fault = Callable[[onnx.ModelProto], None]


def tampered(bundle: Path, out: Path, *faults: Fault) -> Path:
    """A copy of `bundle` with faults in its graph, weights inside, and a manifest that finds nothing amiss."""
    model = onnx.load(str(bundle / "logits.onnx"))
    for fault in faults:
        fault(model)
    shutil.copytree(bundle, out)
    data = model.SerializeToString()
    (out / "logits.onnx").write_bytes(data)
    (out / "weights.data").unlink(missing_ok=True)
    manifest = json.loads((out / "gptexport.json").read_text())
    entry = {"file": "logits.onnx", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.update(graphs={"logits": entry}, weights=None, parity=None)
    (out / "gptexport.json").write_text(json.dumps(manifest))
    return out


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """A weight by its state_dict name, stored transposed or not."""
    (found,) = (t for t in model.graph.initializer if t.name in (name, f"{name}.T"))
    return found


def edit_weight(name: str, change: Callable[[np.ndarray], np.ndarray], *, prefix: str = "transformer.") -> Fault:
    """Replace `transformer.{name}` by what `change` makes of it, which is (out,in) for a linear."""

    def fault(model: onnx.ModelProto) -> None:
        tensor = initializer(model, f"{prefix}{name}")
        value = numpy_helper.to_array(tensor).copy()
        flip = tensor.name.endswith(".T")
        made = change(value.T if flip else value)
        made = np.ascontiguousarray(made.T if flip else made).astype(value.dtype)
        assert made.shape == value.shape
        tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))

    return fault


def scale_weight(name: str, factor: float) -> Fault:
    return edit_weight(name, lambda w: w * np.float32(factor))


def swap_blocks(i: int, j: int, blocks: str = "h") -> Fault:
    """Every weight of block i to block j and back."""

    def fault(model: onnx.ModelProto) -> None:
        names = {t.name: t for t in model.graph.initializer}
        for name, tensor in names.items():
            other = names.get(name.replace(f"{blocks}.{i}.", f"{blocks}.{j}.", 1))
            if f"{blocks}.{i}." in name and other is not None:
                a, b = numpy_helper.to_array(tensor).copy(), numpy_helper.to_array(other).copy()
                tensor.CopyFrom(numpy_helper.from_array(b, tensor.name))
                other.CopyFrom(numpy_helper.from_array(a, other.name))

    return fault


def nodes(model: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op_type]


def set_attribute(op_type: str, index: int | None, **attributes: Any) -> Fault:
    """On the index-th node of its kind in order of execution, or on all."""

    def fault(model: onnx.ModelProto) -> None:
        found = nodes(model, op_type)
        for node in found if index is None else [found[index]]:
            for name, value in attributes.items():
                for old in [a for a in node.attribute if a.name == name]:
                    node.attribute.remove(old)
                node.attribute.append(helper.make_attribute(name, value))

    return fault


def other_mask(index: int | None, offset: int | None) -> Fault:
    """Attention that sees keys j < i + 1 + offset, and always the first; None: all of them, the future too."""

    def fault(model: onnx.ModelProto) -> None:
        set_attribute("Attention", index, is_causal=0)(model)
        if offset is None:
            return
        attentions = nodes(model, "Attention")
        constants = {"m_one": 1, "m_zero": 0, "m_reach": 1 + offset}
        for name, number in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), name))
        for name, axis in (("m_row", 1), ("m_column", 0)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), name))
        made = [
            helper.make_node("Shape", ["input_ids"], ["m_T1"], start=1, end=2),
            helper.make_node("Squeeze", ["m_T1"], ["m_T"]),
            helper.make_node("Range", ["m_zero", "m_T", "m_one"], ["m_range"]),
            helper.make_node("Unsqueeze", ["m_range", "m_row"], ["m_i"]),
            helper.make_node("Unsqueeze", ["m_range", "m_column"], ["m_j"]),
            helper.make_node("Add", ["m_i", "m_reach"], ["m_end"]),
            helper.make_node("Less", ["m_j", "m_end"], ["m_seen"]),
            helper.make_node("Equal", ["m_j", "m_zero"], ["m_first"]),
            helper.make_node("Or", ["m_seen", "m_first"], ["m_mask"]),
        ]
        for position, node in enumerate(made):
            model.graph.node.insert(position, node)
        for node in attentions if index is None else [attentions[index]]:
            node.input.append("m_mask")

    return fault


def insert_after(model: onnx.ModelProto, value: str, make: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Between `value` and its readers put the nodes that `make(value, new)` returns."""
    new = f"{value}.faulty"
    at = next(k for k, node in enumerate(model.graph.node) if value in node.output)
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == value:
                node.input[k] = new
    for offset, node in enumerate(make(value, new)):
        model.graph.node.insert(at + 1 + offset, node)


def through(dtype: int, op_type: str, index: int) -> Fault:
    """Round what a node gives to another dtype and back."""

    def fault(model: onnx.ModelProto) -> None:
        value = nodes(model, op_type)[index].output[0]
        insert_after(
            model,
            value,
            lambda old, new: [
                helper.make_node("Cast", [old], [f"{old}.cast"], to=dtype),
                helper.make_node("Cast", [f"{old}.cast"], [new], to=onnx.TensorProto.FLOAT),
            ],
        )

    return fault


def replace_node(op_type: str, index: int, make: Callable[[onnx.NodeProto], list[onnx.NodeProto]]) -> Fault:
    """Put other nodes in place of one; they end in the same output."""

    def fault(model: onnx.ModelProto) -> None:
        node = nodes(model, op_type)[index]
        at = list(model.graph.node).index(node)
        made = make(node)
        model.graph.node.remove(node)
        for offset, other in enumerate(made):
            model.graph.node.insert(at + offset, other)

    return fault


def constant(model: onnx.ModelProto, name: str, value: Any, dtype: Any = np.float32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name
