"""What the tests of ONNX Runtime share."""

from __future__ import annotations

import onnxruntime
import pytest


@pytest.fixture(autouse=True)
def graphs_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is captured over a GPU that there is not, so that ONNX Runtime's version does not matter."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
