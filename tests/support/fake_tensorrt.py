"""TensorRT as a session sees it, on the host: to test everything but the GPU's own work.

Strict where the real one is treacherous: nothing may run before its shape, profile, memory and addresses are set, an
address must be aligned, and a context's first run does what may not be captured.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.fake_driver import FakeLibrary

VOCAB = 5


def logits_of(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The fake model, causal: (B,T) -> (B,T,V)."""
    return (np.cumsum(ids, axis=1)[:, :, None] * 10.0 + np.arange(VOCAB)).astype(np.float32)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = -1
        self.shape: tuple[int, int] | None = None
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.ran = False
        self.busy = threading.Lock()
        engine.contexts.append(self)

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        self.active_optimization_profile = index
        self.shape = None
        return index < self.engine.num_optimization_profiles

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
        assert name == "input_ids"
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else ["input_ids"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in ("input_ids", "logits") and address % 256 == 0  # NvInferRuntime.h, setTensorAddress

    def execute_async_v3(self, stream: int) -> bool:
        assert self.busy.acquire(blocking=False), "an execution context was used by two threads at once"
        try:
            return self._execute(stream)
        finally:
            self.busy.release()

    def _execute(self, stream: int) -> bool:
        assert self.shape is not None
        engine, (B, T), addresses, memory = self.engine, self.shape, dict(self.addresses), self.memory
        engine.profiles_used.append(self.active_optimization_profile)
        assert memory[1] >= engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        if stream in engine.cuda.captures and not self.ran:
            return False
        self.ran = True

        def work() -> None:
            engine.cuda.check(*memory)
            engine.cuda.check(addresses["input_ids"], 8 * B * T)
            engine.cuda.check(addresses["logits"], 4 * B * T * engine.vocab_size)
            ids = np.ctypeslib.as_array((ctypes.c_int64 * (B * T)).from_address(addresses["input_ids"])).reshape(B, T)
            result = engine.compute(ids.copy())
            ctypes.memmove(addresses["logits"], result.ctypes.data, result.nbytes)

        engine.cuda.enqueue(stream, work)
        return engine.works


class FakeEngine:
    """ICudaEngine, for ids (B,T) in `profiles`. `compute` is what its model says: (B,T) -> (B,T,vocab_size) float32."""

    def __init__(
        self, cuda: FakeLibrary, profiles: list[Any], compute: Callable[[Any], Any] = logits_of, vocab_size: int = VOCAB
    ) -> None:
        self.cuda, self.profiles, self.compute, self.vocab_size = cuda, profiles, compute, vocab_size
        self.contexts: list[FakeContext] = []
        self.profiles_used: list[int] = []
        self.works = True
        self.names = ["input_ids", "logits"]
        self.dtypes = {"input_ids": DataType.INT64, "logits": DataType.FLOAT}

    num_io_tensors = property(lambda self: len(self.names))
    num_optimization_profiles = property(lambda self: len(self.profiles))

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.dtypes[name]

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, -1, self.vocab_size)

    def get_tensor_profile_shape(self, _name: str, index: int) -> Any:
        return self.profiles[index]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 1000 * (index + 1)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda _strategy: None)

    def create_execution_context(self, _config: Any) -> FakeContext:
        return FakeContext(self)


class DataType(enum.Enum):
    INT64 = 1
    INT32 = 2
    FLOAT = 3
    HALF = 4


def fake_library(engine: FakeEngine | None, version: str) -> Any:
    """The module `tensorrt_rtx`."""

    class ILogger:
        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, _logger: Any) -> None: ...

        def deserialize_cuda_engine(self, _data: bytes) -> FakeEngine | None:
            return engine

    return SimpleNamespace(
        __name__=f"fake_{id(engine)}",
        __version__=version,
        ILogger=ILogger,
        Runtime=Runtime,
        DataType=DataType,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER=1, NONE=2),
    )
