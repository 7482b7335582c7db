"""What `gptexport doctor` is told of ONNX Runtime is what was tried."""

from __future__ import annotations

import pytest

from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.probe import probe_providers
from gptexport_runtime.backends.ort.providers import why_not


def test_probe_tells_what_runs() -> None:
    if why_not("cuda") is None:
        pytest.skip("CUDA runs here")
    probe = probe_providers()
    cpu, cuda, *_openvino = probe.providers
    assert (cpu.device, cpu.loads, cpu.reason) == ("cpu", True, None)
    assert (cuda.device, cuda.loads) == ("cuda", False) and cuda.reason
    assert probe.version == import_onnxruntime().__version__ and "CPUExecutionProvider" in probe.available
    assert len(probe.packages) >= 1 and (probe.conflict is None) == (len(probe.packages) == 1)
