"""ONNX Runtime as a session has it on a GPU, over the memory of a GPU that there is not. The CPU's kernels compute."""

from __future__ import annotations

import dataclasses

from gptexport_runtime import CudaOptions
from gptexport_runtime.artifact import Artifact
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.device import DeviceBinding
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.ort.providers.cuda import CUDA
from tests.support.fake_driver import FakeMemory


class OnDevice(OrtBackend):
    """Where CUDA's provider is bound, with the CPU's kernels."""

    def __init__(self, artifact: Artifact, cuda: CudaOptions | None = None) -> None:
        self.memory = memory = FakeMemory()
        provider = dataclasses.replace(
            CUDA, name=CPU.name, bind=lambda: DeviceBinding(memory), options=CPU.options, entries=CPU.entries
        )
        super().__init__(provider, artifact.graphs, OpenOptions(threads=1, cuda=cuda or CudaOptions()))
