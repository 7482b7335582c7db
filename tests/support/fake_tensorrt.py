"""TensorRT and CUDA as a session sees them, on the host: to test everything but the GPU's own work.

Strict where the real ones are treacherous: memory that was freed may not be touched, nothing may run before its shape,
profile, memory and addresses are set, and a captured graph replays the addresses that it was captured with.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCAB = 5


def logits_of(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The fake model, causal: (B,T) -> (B,T,V)."""
    return (np.cumsum(ids, axis=1)[:, :, None] * 10.0 + np.arange(VOCAB)).astype(np.float32)


class FakeCuda:
    """cuda.bindings.runtime. Device memory is host memory; work in a stream happens at once, unless it is captured."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, memory: int = 1 << 30, capturable: bool = True) -> None:
        self.memory, self.capturable = memory, capturable
        self.blocks: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]] | None] = {}  # None: not capturing
        self.handles = itertools.count(1)
        self.graphs = 0
        self.launches = 0
        self.lock = threading.Lock()

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        with self.lock:
            if sum(len(block) for block in self.blocks.values()) + size > self.memory:
                return 2, 0
            block = (ctypes.c_char * size)()
            self.blocks[ctypes.addressof(block)] = block
            return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        with self.lock:
            del self.blocks[address]
        return (0,)

    def cudaStreamCreateWithFlags(self, _flags: int) -> tuple[int, int]:
        with self.lock:
            handle = next(self.handles)  # never one that was destroyed: a stream dies when it is collected
            self.streams[handle] = None
        return 0, handle

    def cudaStreamDestroy(self, handle: int) -> tuple[int]:
        with self.lock:
            del self.streams[handle]
        return (0,)

    def cudaStreamSynchronize(self, handle: int) -> tuple[int]:
        assert self.streams[handle] is None, "a stream that captures may not be waited for"
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, handle: int) -> tuple[int]:
        assert self.streams[handle] is None
        self.check(to if kind == 1 else source, size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamBeginCapture(self, handle: int, _mode: int) -> tuple[int]:
        self.streams[handle] = []
        return (0,)

    def cudaStreamEndCapture(self, handle: int) -> tuple[int, Any]:
        work, self.streams[handle] = self.streams[handle], None
        return (0 if self.capturable else 900), work

    def cudaGraphInstantiate(self, graph: Any, _flags: int) -> tuple[int, Any]:
        with self.lock:
            self.graphs += 1
        return 0, graph

    def cudaGraphDestroy(self, _graph: Any) -> tuple[int]:
        return (0,)

    def cudaGraphExecDestroy(self, _graph: Any) -> tuple[int]:
        with self.lock:
            self.graphs -= 1
        return (0,)

    def cudaGraphLaunch(self, graph: Any, _handle: int) -> tuple[int]:
        with self.lock:
            self.launches += 1
        for work in graph:
            work()
        return (0,)

    def enqueue(self, handle: int, work: Callable[[], None]) -> None:
        captured = self.streams[handle]
        if captured is None:
            work()
        else:
            captured.append(work)

    def check(self, address: int, size: int) -> None:
        """That the bytes are inside one block that is not freed."""
        with self.lock:
            inside = any(start <= address and address + size <= start + len(b) for start, b in self.blocks.items())
        assert inside, "memory that is not, or no longer, allocated"


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = -1
        self.shape: tuple[int, int] | None = None
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.thread = threading.get_ident()
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
        return name in ("input_ids", "logits")

    def execute_async_v3(self, stream: int) -> bool:
        assert self.thread == threading.get_ident(), "an execution context was used by two threads"
        assert self.shape is not None
        profile, shape, addresses, memory = (
            self.active_optimization_profile,
            self.shape,
            dict(self.addresses),
            self.memory,
        )
        self.engine.profiles_used.append(profile)
        assert memory[1] >= self.engine.get_device_memory_size_for_profile_v2(profile)

        def work() -> None:
            cuda = self.engine.cuda
            B, T = shape
            cuda.check(*memory)
            cuda.check(addresses["input_ids"], 8 * B * T)
            cuda.check(addresses["logits"], 4 * B * T * self.engine.vocab_size)
            ids = np.ctypeslib.as_array((ctypes.c_int64 * (B * T)).from_address(addresses["input_ids"])).reshape(B, T)
            result = self.engine.compute(ids.copy())
            ctypes.memmove(addresses["logits"], result.ctypes.data, result.nbytes)

        self.engine.cuda.enqueue(stream, work)
        return self.engine.works


class FakeEngine:
    """ICudaEngine, for ids (B,T) in `profiles`. `compute` is what its model says: (B,T) -> (B,T,vocab_size) float32."""

    def __init__(
        self, cuda: FakeCuda, profiles: list[Any], compute: Callable[[Any], Any] = logits_of, vocab_size: int = VOCAB
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
