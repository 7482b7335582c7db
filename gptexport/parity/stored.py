"""The weights where a graph stores them, each compared with the checkpoint's.

A grid of ids touches few rows of an embedding, and a bias that is a little off may drown in the noise: here nothing
is run, so nothing drowns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn as nn
from onnx import TensorProto, numpy_helper

from gptexport.dtypes import TORCH_DTYPES
from gptexport.parity.divergence import short
from gptexport.parity.gates import EPS
from gptexport.parity.sites import GraphIndex, stored_names
from gptexport.parity.verdict import Invariance

AT_ONCE = 4096  # rows
ROUNDING = 4  # times the dtype's epsilon
FLOATS = {TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Row:
    """The row of a weight that differs most: by `change` times its RMS."""

    rows: int
    worst: int
    change: float


class StoredWeights:
    """What a graph holds under the names of a model's parameters. Weights are read one at a time."""

    def __init__(self, model: nn.Module, graph: Path) -> None:
        proto = onnx.load(str(graph), load_external_data=False)
        self.index = GraphIndex(proto.graph)
        self._model = model
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._folder = str(graph.parent)

    def of(self, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Each stored copy of a parameter by its name in the graph, turned as PyTorch keeps it; none that is packed.

        Our exports mark by `.T` what is turned; a square weight of another's export may be turned without a word.
        What a target widened with zeros is cut to size.
        """
        for name in sorted(stored_names(self.index, self._model, parameter)):
            tensor = self._tensors[name]
            if tensor.data_type not in FLOATS:
                continue
            array = numpy_helper.to_array(tensor, base_dir=self._folder)
            if tensor.data_type == TensorProto.BFLOAT16:
                array = array.astype(np.float32)  # torch takes no numpy bfloat16
            found = torch.from_numpy(np.array(array))
            turned = found.T if found.dim() == 2 else found
            ways = (turned, found) if name.endswith(".T") else (found, turned)
            fitting = [cut for way in ways if (cut := _cut(way, parameter.shape)) is not None]
            yield from ((name, cut) for cut in fitting[:1])


def _cut(stored: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """The part of that shape, if the rest is zeros."""
    if stored.shape == shape:
        return stored
    if stored.dim() != len(shape) or any(has < wants for has, wants in zip(stored.shape, shape, strict=True)):
        return None
    cut = stored[tuple(slice(size) for size in shape)]
    return cut if cut.count_nonzero() == stored.count_nonzero() else None


def compare_stored(model: nn.Module, graph: Path, dtype: str) -> list[Invariance]:
    """No weight may differ by more than rounding to `dtype` explains: each embedding, and the worst of the others."""
    allowed = ROUNDING * EPS[dtype]
    rows = worst_rows(model, graph, dtype)
    found = [
        Invariance(name=f"rows of {short(name)}", max_change=row.change, allowed=allowed, stored=True)
        for name, row in rows.items()
    ]
    stored = StoredWeights(model, graph)
    changes: dict[str, float] = {}
    embeddings = {id(model.get_submodule(name).weight) for name in rows}
    for name, parameter in model.named_parameters():
        if id(parameter) not in embeddings:
            for _, tensor in stored.of(parameter):
                changes[name] = max(changes.get(name, 0.0), _change(tensor, parameter, dtype))
    if changes:
        worst = max(changes, key=lambda name: changes[name])
        told = "other weights" if changes[worst] <= allowed else f"other weights ({short(worst)})"
        found.append(Invariance(name=told, max_change=changes[worst], allowed=allowed, stored=True))
    return found


def worst_rows(model: nn.Module, graph: Path, dtype: str) -> dict[str, Row]:
    """Of every embedding by its name, but for those whose rows the graph packs or has not."""
    stored = StoredWeights(model, graph)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            for at, tensor in stored.of(module.weight):
                if any(node.op_type == "Gather" for node in stored.index.readers({at})):
                    found[name] = _worst(tensor, module.weight, dtype)
    return found


def _change(stored: torch.Tensor, own: torch.Tensor, dtype: str) -> float:
    """Which way round a square weight is read, running shows: here it may be either."""
    change = _worst(stored, own, dtype).change
    is_square = stored.dim() == 2 and stored.shape[0] == stored.shape[1]
    return min(change, _worst(stored.T, own, dtype).change) if is_square and change > 0 else change


def _worst(stored: torch.Tensor, own: torch.Tensor, dtype: str) -> Row:
    """A vector is one row. What is the checkpoint's number is right, and so is that number rounded to `dtype`."""
    stored, own = (x.detach().reshape(-1, x.shape[-1] if x.dim() else 1) for x in (stored, own))
    changes = []
    for start in range(0, len(own), AT_ONCE):
        theirs, ours = (x[start : start + AT_ONCE].to(torch.float64) for x in (stored, own))
        rounded = ours.to(TORCH_DTYPES[dtype]).to(torch.float64)
        error = torch.minimum((theirs - ours).abs(), (theirs - rounded).abs())
        scale = torch.maximum(ours.square().mean(dim=1, keepdim=True).sqrt(), ours.abs()).clamp_min(1e-100)
        changes.append((error / scale).amax(dim=1))
    change = torch.cat(changes).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return Row(len(own), int(change.argmax()), float(change.max()))
