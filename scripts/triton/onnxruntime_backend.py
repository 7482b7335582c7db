"""In place of Triton's ONNX Runtime backend, which no wheel has: a Python-based backend of the same name.

It runs `platform: "onnxruntime_onnx"` models of an unmodified repository: requests that Triton has batched are put
together, run by ONNX Runtime and taken apart again. It says nothing of the real backend's options, devices and memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        file = path / "model.onnx" if path.is_dir() else path
        self._graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self._inputs = [(item["name"], "reshape" in item) for item in config["input"]]
        self._output = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """All of them as one batch, which is why Triton lets only equal shapes meet."""
        fed = {}
        for name, flat in self._inputs:
            rows = [triton.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            joined = np.concatenate(rows)
            fed[name] = joined.reshape(-1) if flat else joined
        try:
            (out,) = self._graph.run([self._output], fed)
        except Exception as error:  # the server lives on
            return [triton.InferenceResponse(error=triton.TritonError(str(error)[:500])) for _ in requests]
        counts = [len(triton.get_input_tensor_by_name(request, self._inputs[0][0]).as_numpy()) for request in requests]
        parts = np.split(out, np.cumsum(counts)[:-1])
        return [triton.InferenceResponse([triton.Tensor(self._output, part)]) for part in parts]
