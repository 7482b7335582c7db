"""A raw trace becomes the portable graph: readable names, weights as they are read, nothing of the machine."""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn as nn
from gptexport_runtime.contract import META_BLOCK_SIZE, META_VOCAB_SIZE

import gptexport


def make_portable(graph: ir.Model, model: nn.Module, *, block_size: int, vocab_size: int) -> None:
    """Rewrite `graph`, traced from `model`, in place. Any ONNX backend of its opset runs the result."""
    _name_weights(graph.graph, model)
    _transpose_weights(graph.graph)
    _strip_metadata(graph)
    graph.producer_name = "gptexport"
    graph.producer_version = gptexport.__version__
    graph.metadata_props[META_BLOCK_SIZE] = str(block_size)
    graph.metadata_props[META_VOCAB_SIZE] = str(vocab_size)


def weight_of(value: ir.Value | None) -> torch.Tensor | None:
    """The PyTorch tensor behind an initializer, or None for what the exporter made itself (shape arithmetic)."""
    raw = getattr(value.const_value, "raw", None) if value is not None else None
    return raw if isinstance(raw, torch.Tensor) else None


def _name_weights(graph: ir.Graph, model: nn.Module) -> None:
    """Weights are called what the model's state_dict calls them; a tied one by its first name."""
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
    for value in list(graph.initializers.values()):
        tensor = weight_of(value)
        if tensor is not None:
            known = names.get((tensor.data_ptr(), tuple(tensor.shape)))
            if known is not None and known not in graph.initializers:
                value.name = known  # onnx_ir keeps the graph's index of initializers in step


def _transpose_weights(graph: ir.Graph) -> None:
    """nn.Linear keeps (out, in) and MatMul reads (in, out): store what is read, instead of a Transpose per weight.

    A weight with other readers, such as a tied head, stays as it is behind its Transpose: it is on disk once.
    """
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        source, result = node.inputs[0], node.outputs[0]
        tensor = weight_of(source)
        if source is None or tensor is None or tensor.dim() != 2 or len(list(source.uses())) > 1:
            continue
        stored = ir.Value(
            name=f"{source.name}.T",
            type=source.type,
            shape=ir.Shape(tensor.t().shape),
            const_value=ir.tensor_adapters.TorchTensor(tensor.t(), name=f"{source.name}.T"),
        )
        graph.register_initializer(stored)
        result.replace_all_uses_with(stored)
        graph.remove(node, safe=True)
        assert source.name is not None
        del graph.initializers[source.name]


def _strip_metadata(graph: ir.Model) -> None:
    """The exporter records stack traces with the paths of the user's files on every node."""
    ir.passes.common.ClearMetadataAndDocStringPass()(graph)
    graph.graph.name = "logits"
    for node in graph.graph:
        node.metadata_props.clear()
    for value in [
        *graph.graph.inputs,
        *graph.graph.initializers.values(),
        *(v for n in graph.graph for v in n.outputs),
    ]:
        value.metadata_props.clear()
        value.doc_string = None
