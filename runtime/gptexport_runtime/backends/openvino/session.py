"""A graph that OpenVINO has compiled. It says of itself what an `onnxruntime.InferenceSession` says."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.forked import keep_in_child
from gptexport_runtime.backends.openvino.package import CPU, PACKAGE, core, import_openvino, properties, version
from gptexport_runtime.backends.ort.binding import Ids
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.package import first_line
from gptexport_runtime.backends.ort.wire import read_metadata
from gptexport_runtime.contract.model import read_limit
from gptexport_runtime.contract.names import META_ACTIVATION_BLOCK
from gptexport_runtime.errors import ArtifactError

TYPES = {"i64": "tensor(int64)", "f32": "tensor(float)", "f16": "tensor(float16)", "bf16": "tensor(bfloat16)"}


@dataclass(frozen=True)
class Value:
    """An input or an output. shape: None where any size will do."""

    name: str
    type: str
    shape: list[int | None]


@dataclass(frozen=True)
class ModelMeta:
    """What the file says beside the graph, which OpenVINO does not keep."""

    custom_metadata_map: dict[str, str]


class OpenVinoSession:
    """Threads may share it: they take turns.

    compiled: the `openvino.CompiledModel`, once there is one.
    """

    compiled: Any

    def __init__(self, model: Path | bytes, options: OpenOptions, path: Path | None = None) -> None:
        """Read the graph, which takes no time beside compiling it.

        Args:
            model: the file; or the graph itself, whose weights lie in files beside `path`.

        Raises:
            BackendUnavailableError: OpenVINO is missing.
            ArtifactError: it does not take the graph.
        """
        self._openvino, self._options = import_openvino(), options
        self._turn = threading.Lock()
        if isinstance(model, bytes):
            assert path is not None, "the weights' folder"
            with _as_a_file(model, path) as file:
                self._read(file)
                self.compile()
        else:
            self._read(model)

    def _read(self, path: Path) -> None:
        self._path, self._metadata = path, read_metadata(path)
        found = core()
        try:
            self._model = found.read_model(str(path))
        except Exception as error:
            raise self._refused(error) from error
        self._inputs = [_value(found) for found in self._model.inputs]
        self._outputs = [_value(found) for found in self._model.outputs]

    def compile(self) -> None:
        """Make kernels of it. Raises: ArtifactError: OpenVINO cannot."""
        told = {**properties(self._options), "PERFORMANCE_HINT": "LATENCY"}  # one call at a time, on all threads
        block = read_limit(self._metadata, META_ACTIVATION_BLOCK, self._path)
        if block is not None:  # else 32; and weights in shorter blocks it would widen
            told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(block)
        found = core()
        try:
            _keep_narrow(self._model, self._openvino.Type.bf16)
            self.compiled = found.compile_model(self._model, CPU, told)
            self._request = self.compiled.create_infer_request()
        except Exception as error:
            raise self._refused(error) from error
        keep_in_child(self.compiled)
        keep_in_child(self._request)
        del self._model

    def _refused(self, error: Exception) -> ArtifactError:
        reason = _reason(error)
        if "externally stored data" in reason:
            advice = "Its external data must lie beside it, whole, under the name it was exported with."
        elif "onversion" in reason:  # of an operator that OpenVINO does not know
            advice = "Export it with --target openvino."
        else:
            advice = "It is damaged or not an ONNX graph: copy it again, or export again."
        return ArtifactError(f"{self._path} does not load into {PACKAGE} {version()}: {reason} {advice}")

    def get_inputs(self) -> list[Value]:
        return self._inputs

    def get_outputs(self) -> list[Value]:
        return self._outputs

    def get_modelmeta(self) -> ModelMeta:
        return ModelMeta(self._metadata)

    def run(self, names: Sequence[str], feed: Mapping[str, Ids]) -> list[NDArray[Any]]:
        """Outputs, each in memory of its own."""
        with self._turn:
            found = self._request.infer(dict(feed), share_outputs=True)
            return [np.array(found[name]) for name in names]

    def compute(self, feed: Mapping[str, Ids], name: str, out: NDArray[Any]) -> None:
        """Compute the output into `out`, without a copy. Arrays are C-contiguous."""
        with self._turn:
            for given, values in feed.items():
                shared = bool(values.flags.writeable)  # it shares nothing else
                self._request.set_tensor(given, self._openvino.Tensor(values, shared_memory=shared))
            self._request.set_tensor(name, self._openvino.Tensor(out, shared_memory=True))
            self._request.infer(share_outputs=True)  # else it returns a copy besides: a tenth longer


@contextmanager
def _as_a_file(graph: bytes, beside: Path) -> Iterator[Path]:
    """OpenVINO finds weights beside a file alone: so one in a folder of its own, with what the graph names."""
    with tempfile.TemporaryDirectory() as folder:
        for file in beside.parent.iterdir():
            if file != beside and file.is_file() and file.name.encode() in graph:
                _link(file, Path(folder) / file.name)
        path = Path(folder) / beside.name
        path.write_bytes(graph)
        yield path


def _link(file: Path, as_: Path) -> None:
    """No symbolic link: OpenVINO reads none that leads out of the folder."""
    try:
        os.link(file, as_)
    except OSError:  # another file system
        shutil.copyfile(file, as_)


def _keep_narrow(model: Any, kind: Any) -> None:
    """Weights in bfloat16 stay as they are: OpenVINO would widen each once, and keep it in float32 besides.

    The mark is `ov::Decompression` (core/rt_info/decompression.hpp), by which it knows weights that were compressed.
    """
    for node in model.get_ops():
        stored = node.input_value(0) if node.get_type_name() == "Convert" else None
        if stored is None or stored.get_element_type() != kind:
            continue
        if stored.get_node().get_type_name() == "Constant":
            node.get_rt_info()["decompression_0"] = ""


def _value(found: Any) -> Value:
    kind = found.get_element_type().get_type_name()
    shape = [dim.get_length() if dim.is_static else None for dim in found.get_partial_shape()]
    return Value(found.get_any_name(), TYPES.get(kind, kind), shape)


def _reason(error: Exception) -> str:
    """OpenVINO's messages begin with where in its source they come from; the last line says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1].rstrip('.')}." if lines else f"{first_line(error)}."
