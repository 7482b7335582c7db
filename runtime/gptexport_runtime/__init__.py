"""Run an exported GPT: numpy in, numpy out. Needs numpy and ONNX Runtime; never imports torch, onnx or click."""

from gptexport_runtime.backends.gpu.dlpack import DeviceLogits
from gptexport_runtime.backends.ort.options import CudaOptions
from gptexport_runtime.errors import (
    ArtifactError,
    BackendUnavailableError,
    ContextLengthError,
    ExecutionError,
    GPTExportError,
    InputError,
    SessionError,
)
from gptexport_runtime.generate.cache import Cache
from gptexport_runtime.load import load
from gptexport_runtime.score import Scores
from gptexport_runtime.session import Session

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendUnavailableError",
    "Cache",
    "ContextLengthError",
    "CudaOptions",
    "DeviceLogits",
    "ExecutionError",
    "GPTExportError",
    "InputError",
    "Scores",
    "Session",
    "SessionError",
    "__version__",
    "load",
]
