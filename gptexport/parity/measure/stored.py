"""The weights that a graph stores, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn as nn
from onnx import TensorProto, helper, numpy_helper

from gptexport.parity.measure.graph_index import GraphIndex, stored_names

FLOATS = {TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def read_weight(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[np.generic]:
    """The numbers of an initializer, mapped from its file where they are outside of the graph.

    Not by onnx itself, which refuses links: a bundle may be laid out as the Hugging Face cache lays out its files.

    Args:
        folder: of the graph.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if not np.prod(shape):
        return np.empty(shape, dtype)
    file = folder / entries["location"]
    return np.memmap(file, dtype=dtype, mode="r", offset=int(entries.get("offset", 0)), shape=shape)


class StoredWeights:
    """What a graph holds under the names of a model's parameters. Weights are read one at a time."""

    def __init__(self, model: nn.Module, graph: Path) -> None:
        proto = onnx.load(str(graph), load_external_data=False)
        self.index = GraphIndex(proto.graph)
        self._model = model
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._folder = graph.parent

    def of(self, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Each stored copy of a parameter by its name in the graph, turned as PyTorch keeps it; none that is packed.

        Our exports mark by `.T` what is turned; a square weight of another's export may be turned without a word.
        What a target widened with zeros is cut to size.
        """
        for name in sorted(stored_names(self.index, self._model, parameter)):
            tensor = self._tensors[name]
            if tensor.data_type not in FLOATS:
                continue
            array = read_weight(tensor, self._folder)
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
