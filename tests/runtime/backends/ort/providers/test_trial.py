"""The model that is tried is a model."""

from __future__ import annotations

import numpy as np

from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.ort.providers.trial import TINY_MODEL, why_not_running


def test_tiny_model_runs() -> None:
    session = import_onnxruntime().InferenceSession(TINY_MODEL, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([2], np.float32)})[0].tolist() == [-2]
    assert why_not_running(import_onnxruntime(), CPU) is None
