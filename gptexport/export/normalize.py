"""A raw trace becomes the portable graph: readable names, weights stored as they are read, nothing of the machine."""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn as nn

import gptexport
from gptexport.export.rewrites.in_float32 import widen_what_onnx_lacks
from gptexport.export.rewrites.unit_scale import shrink_scales
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import META_BLOCK_SIZE, META_VOCAB_SIZE


def normalize(trace: Trace, module: nn.Module, *, block_size: int, vocab_size: int) -> None:
    """Rewrite `trace`, of `module`, in place. Any ONNX backend of its opset runs the result."""
    _name_weights(trace, module)
    _transpose_weights(trace)
    shrink_scales(trace)
    widen_what_onnx_lacks(trace.graph)
    model = trace.model
    _strip_metadata(model)
    model.producer_name = "gptexport"
    model.producer_version = gptexport.__version__
    model.metadata_props[META_BLOCK_SIZE] = str(block_size)
    model.metadata_props[META_VOCAB_SIZE] = str(vocab_size)


def _name_weights(trace: Trace, module: nn.Module) -> None:
    """Weights are called what the module's state_dict calls them; a tied one by its first name."""
    names: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in module.state_dict().items():
        names.setdefault((tensor.data_ptr(), tensor.shape), name)
    for traced, tensor in list(trace.weights.items()):
        known = names.get((tensor.data_ptr(), tensor.shape))
        if known is not None and known not in trace.weights:
            trace.graph.initializers[traced].name = known  # the graph's index follows
            trace.weights[known] = trace.weights.pop(traced)


def _transpose_weights(trace: Trace) -> None:
    """nn.Linear keeps (out, in) and MatMul reads (in, out): store what is read, instead of a Transpose per weight.

    A weight with other readers, such as a tied head, stays as it is behind its Transpose: it is on disk once.
    """
    graph = trace.graph
    for node in list(graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Transpose" or source is None or source.name not in trace.weights:
            continue
        tensor = trace.weights[source.name]
        if tensor.dim() != 2 or len(source.uses()) > 1:
            continue
        name = f"{source.name}.T"
        stored = ir.Value(name=name, type=source.type, shape=ir.Shape(tensor.t().shape))
        graph.initializers[name] = stored
        trace.weights[name] = tensor.t()
        result.replace_all_uses_with(stored)
        graph.remove(node, safe=True)
        del graph.initializers[source.name], trace.weights[source.name]


def _strip_metadata(model: ir.Model) -> None:
    """The exporter records stack traces with the paths of the user's files on every node."""
    ir.passes.common.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    graph.name = "logits"
    for node in graph:
        node.metadata_props.clear()
    for value in [
        *graph.inputs,
        *graph.initializers.values(),
        *(v for n in graph for v in n.outputs),
    ]:
        value.metadata_props.clear()
        value.doc_string = None
