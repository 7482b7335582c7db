"""Run a copy of a graph that also returns its inner values; the file itself is not touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gptexport.parity.tokens import Ids
from gptexport_runtime.backends.ort.cuda_options import CudaOptions
from gptexport_runtime.backends.ort.providers import CPU, CUDA, SILENT, import_onnxruntime
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS

Values = dict[str, npt.NDArray[Any]]


def run_exposed(
    path: Path,
    ids: Ids,
    names: Sequence[str],
    *,
    device: str = "cpu",
    optimize: bool = True,
    model: onnx.ModelProto | None = None,
) -> Values:
    """The logits and the values called `names`, as ONNX Runtime computes them.

    Args:
        optimize: as in a session; else every node runs as it is written.
        model: run this in place of the file's own graph; its weights are still found beside `path`.
    """
    ort = import_onnxruntime()
    model = model or onnx.load(str(path), load_external_data=False)
    there = {output.name for output in model.graph.output}
    names = [name for name in dict.fromkeys(names) if name not in there]
    shown = show(model, names)
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.disable_prepacking", "1")  # it runs once
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    provider, provider_options = (CUDA, CudaOptions().of_provider()) if device == "cuda" else (CPU, {})
    session = ort.InferenceSession(model.SerializeToString(), options, [provider], [provider_options])
    return dict(zip([LOGITS, *names], session.run([LOGITS, *shown], {INPUT_IDS: ids}), strict=True))


def show(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Make values outputs of the graph, and say what these are called. Of bfloat16, for which numpy has no name, in
    float32: nothing is lost."""
    graph = model.graph
    wide = any(tensor.data_type == TensorProto.BFLOAT16 for tensor in graph.initializer)
    shown = [f"{name}.shown" if wide else name for name in names]
    for name, output in zip(names, shown, strict=True):
        if wide:
            graph.node.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        graph.output.append(onnx.ValueInfoProto(name=output))
    return shown


def in_float32(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy that computes in float32 with the bfloat16 weights that it has: ONNX Runtime's CPU runs no bfloat16.

    Args:
        folder: of the weights.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            wide = numpy_helper.to_array(tensor, base_dir=str(folder)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "softmax_precision") and attribute.i == TensorProto.BFLOAT16:
                attribute.CopyFrom(helper.make_attribute(attribute.name, TensorProto.FLOAT))
            elif attribute.t.data_type == TensorProto.BFLOAT16:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    return copy
