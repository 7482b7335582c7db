"""Run a graph as it is written, or with intermediate values among its outputs; the file itself is not touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from gptexport.export.rewrites.float32 import to_float32
from gptexport.parity.measure.metrics import Ids, Logits
from gptexport.precision import Precision
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers import provider_of
from gptexport_runtime.backends.ort.session import open_session
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS

Values = dict[str, npt.NDArray[Any]]


def run_graph(
    path: Path, ids: Ids, precision: Precision, *, device: str = "cpu", model: onnx.ModelProto | None = None
) -> Logits:
    """The logits, every node run as it is written; arguments as those of `run_with_intermediates`."""
    return run_with_intermediates(path, ids, [], precision, device=device, optimize=False, model=model)[LOGITS]


def run_with_intermediates(
    path: Path,
    ids: Ids,
    names: Sequence[str],
    precision: Precision,
    *,
    device: str = "cpu",
    optimize: bool = True,
    model: onnx.ModelProto | None = None,
) -> Values:
    """The logits and the values called `names`, as ONNX Runtime computes them.

    Args:
        precision: of the graph. One that ONNX Runtime's CPU does not compute in is computed there in float32.
        optimize: as in a session; else every node runs as it is written.
        model: run this in place of the file's own graph, and change it; its weights are still found beside `path`.
    """
    model = model or onnx.load(str(path), load_external_data=False)
    if not precision.runs_on(device):
        to_float32(model)
    existing = {output.name for output in model.graph.output}
    names = [name for name in dict.fromkeys(names) if name not in existing]
    outputs = add_outputs(model, names)
    options = OpenOptions(prepack=False, dtype=precision.dtype)  # it runs once
    session = open_session(model.SerializeToString(), provider_of(device), options, path=path, optimize=optimize)
    return dict(zip([LOGITS, *names], session.run([LOGITS, *outputs], {INPUT_IDS: ids}), strict=True))


def add_outputs(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Make values outputs of the graph, and say what these are called. Of bfloat16, for which numpy has no name, in
    float32: nothing is lost."""
    graph = model.graph
    cast = any(tensor.data_type == TensorProto.BFLOAT16 for tensor in graph.initializer)
    outputs = [f"{name}.float32" if cast else name for name in names]
    for name, output in zip(names, outputs, strict=True):
        if cast:
            graph.node.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        graph.output.append(onnx.ValueInfoProto(name=output))
    return outputs
