"""The rows of the embeddings: a grid of ids touches few of them, so every row is compared where it is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch.nn as nn
from onnx import numpy_helper

from gptexport.parity.divergence import short
from gptexport.parity.gates import EPS
from gptexport.parity.sites import GraphIndex, stored_names
from gptexport.parity.verdict import Invariance

ROWS = 4096  # compared at once
ROUNDING = 4  # times the dtype's epsilon


def compare_tables(model: nn.Module, graph: Path, dtype: str) -> list[Invariance]:
    """The largest difference in any row of an embedding, over that row's RMS; none where the graph packs its rows."""
    proto = onnx.load(str(graph), load_external_data=False)
    index = GraphIndex(proto.graph)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        for stored in stored_names(index, model, module.weight):
            read = [node for node in index.readers({stored}) if node.op_type == "Gather"]
            array = numpy_helper.to_array(tensors[stored], base_dir=str(graph.parent)) if read else np.empty(0)
            if array.shape == tuple(module.weight.shape) and array.dtype.kind == "f":
                change = _largest(array, np.asarray(module.weight.detach()))
                allowed = ROUNDING * EPS[dtype]
                found.append(Invariance(name=f"rows of {short(name)}", max_change=change, allowed=allowed))
    return found


def _largest(stored: np.ndarray, own: np.ndarray) -> float:
    worst = 0.0
    for start in range(0, len(own), ROWS):
        rows = own[start : start + ROWS].astype(np.float64)
        scale = np.sqrt(np.square(rows).mean(axis=1)).clip(1e-100)
        difference = np.abs(stored[start : start + ROWS] - rows).max(axis=1) / scale
        worst = max(worst, float(difference.max())) if not np.isnan(difference).any() else np.inf
    return worst
