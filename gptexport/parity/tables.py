"""The rows of the embeddings: a grid of ids touches few of them, so every row is compared where it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch.nn as nn
from onnx import numpy_helper

from gptexport.parity.divergence import short
from gptexport.parity.gates import EPS
from gptexport.parity.sites import GraphIndex, stored_names
from gptexport.parity.verdict import Invariance

AT_ONCE = 4096  # rows
ROUNDING = 4  # times the dtype's epsilon


@dataclass(frozen=True)
class Row:
    """The row of a table that differs most: by `change` times the row's RMS."""

    rows: int
    worst: int
    change: float


def compare_tables(model: nn.Module, graph: Path, dtype: str) -> list[Invariance]:
    """No row of an embedding may differ by more than rounding to `dtype` explains."""
    allowed = ROUNDING * EPS[dtype]
    return [
        Invariance(name=f"rows of {short(name)}", max_change=row.change, allowed=allowed)
        for name, row in worst_rows(model, graph).items()
    ]


def worst_rows(model: nn.Module, graph: Path) -> dict[str, Row]:
    """Of every embedding by its name, but for those whose rows the graph packs or has not."""
    proto = onnx.load(str(graph), load_external_data=False)
    index = GraphIndex(proto.graph)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding):
            continue
        for stored in stored_names(index, model, module.weight):
            if any(node.op_type == "Gather" for node in index.readers({stored})):
                array = numpy_helper.to_array(tensors[stored], base_dir=str(graph.parent))
                if array.shape == tuple(module.weight.shape) and array.dtype.kind == "f":
                    found[name] = _worst(array, np.asarray(module.weight.detach()))
    return found


def _worst(stored: npt.NDArray[np.floating], own: npt.NDArray[np.floating]) -> Row:
    changes = []
    for start in range(0, len(own), AT_ONCE):
        rows = own[start : start + AT_ONCE].astype(np.float64)
        scale = np.sqrt(np.square(rows).mean(axis=1)).clip(1e-100)
        changes.append(np.abs(stored[start : start + AT_ONCE] - rows).max(axis=1) / scale)
    change = np.nan_to_num(np.concatenate(changes), nan=np.inf)
    return Row(len(own), int(change.argmax()), float(change.max()))
