"""An engine runs calls over device memory: execution contexts, and CUDA graphs of the shapes that are captured.

A shape that is not captured runs in a context whose shape changes from call to call. A captured one has a context of
its own, because a CUDA graph is valid only while its context keeps its shape. All contexts share one block of memory
for activations: they never run at the same time.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.base import Floats, Ids
from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.backends.gpu.memory import DeviceMemory
from gptexport_runtime.backends.gpu.runner import Call, DeviceRunner
from gptexport_runtime.backends.gpu.streams import CapturedGraph, Stream
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.engine import EngineInfo, choose_profile
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS
from gptexport_runtime.errors import ExecutionError

Shape = tuple[int, ...]  # of ids, (B,T)


class TrtGraph:
    """See base.Graph. Threads take turns."""

    def __init__(
        self, library: types.ModuleType, engine: Any, info: EngineInfo, memory: DeviceMemory, path: Path
    ) -> None:
        self._profiles, self._vocab_size, self._memory = info.profiles, info.info.vocab_size, memory
        self._contexts = Contexts(library, engine, memory, path)
        self._runner = DeviceRunner(memory, captures=True, what=str(path))

    @property
    def captured_graphs(self) -> int:
        return self._runner.captured_graphs

    def output_shape(self, B: int, T: int) -> tuple[int, ...]:
        return (B, T, self._vocab_size)

    def run(self, ids: Ids, lengths: Ids, out: Floats) -> None:
        self._runner.compute(self._call(ids), out)

    def run_on_device(self, ids: Ids | Borrowed) -> DeviceLogits:
        call = self._call(ids)
        return DeviceLogits(self._runner.compute_on_device(call), call.output, self._memory.dlpack_device)

    def _call(self, ids: Ids | Borrowed) -> _TrtCall:
        """Raises: InputError: no profile of the engine takes (B,T)."""
        B, T = ids.shape
        profile = choose_profile(self._profiles, B, T)
        output = Output(LOGITS, self.output_shape(B, T))
        return _TrtCall(feed={INPUT_IDS: ids}, output=output, contexts=self._contexts, profile=profile)


class Contexts:
    """The execution contexts of an engine, a stream, and the memory of activations. One call at a time."""

    def __init__(self, library: types.ModuleType, engine: Any, memory: DeviceMemory, path: Path) -> None:
        self.stream = Stream(memory.driver)
        self._trt, self._engine, self._path = library, engine, path
        # for the largest profile, as TensorRT itself would take it: captured graphs hold its address
        sizes = map(engine.get_device_memory_size_for_profile_v2, range(engine.num_optimization_profiles))
        self._activations = memory.allocate(max(map(int, sizes)))
        self.changing = self.make(specialize=False)  # for calls of any shape

    def make(self, *, specialize: bool) -> Any:
        """An execution context without memory of its own.

        TensorRT for RTX compiles kernels for a shape at run time: at once where the shape stays, and never where it
        does not, so that no result depends on whether a compilation in the background has ended.
        """
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)  # RTX only
        if strategies is not None:
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if specialize else strategies.NONE
        context = self._engine.create_execution_context(config)
        if context is None:
            raise ExecutionError(f"{self._path}: TensorRT makes no execution context. The GPU's memory may be full.")
        return context

    def prepare(self, context: Any, shape: Shape, profile: int, ids: int, logits: int) -> None:
        """Set shape, profile and addresses."""
        if context.active_optimization_profile != profile:
            self._demand(context.set_optimization_profile_async(profile, self.stream.handle), "profile", shape)
            self.stream.wait()
        context.set_device_memory(self._activations.address, self._activations.size)
        self._demand(context.set_input_shape(INPUT_IDS, shape), "shape", shape)
        self._demand(not context.infer_shapes(), "shapes derived from it", shape)
        for name, address in ((INPUT_IDS, ids), (LOGITS, logits)):
            self._demand(context.set_tensor_address(name, address), f"address of {name}", shape)

    def execute(self, context: Any, shape: Shape) -> None:
        """Put the computation into the stream."""
        self._demand(context.execute_async_v3(self.stream.handle), "run", shape)

    def _demand(self, succeeded: bool, what: str, shape: Shape) -> None:
        """TensorRT answers False where others raise."""
        if not succeeded:
            B, T = shape
            raise ExecutionError(f"{self._path} failed at B={B}, T={T}: TensorRT refuses the {what}.")


@dataclass(frozen=True, eq=False, kw_only=True)
class _TrtCall(Call):
    contexts: Contexts
    profile: int

    def run(self, inputs: int, output: int) -> None:
        contexts = self.contexts
        contexts.prepare(contexts.changing, self.ids_shape, self.profile, inputs, output)
        contexts.execute(contexts.changing, self.ids_shape)
        contexts.stream.wait()

    def record(self, inputs: int, output: int, number: int) -> _Recording:
        contexts, shape = self.contexts, self.ids_shape
        context = contexts.make(specialize=True)
        contexts.prepare(context, shape, self.profile, inputs, output)
        contexts.execute(context, shape)  # whatever TensorRT postpones to the first run is done then
        contexts.stream.wait()
        graph = contexts.stream.capture(lambda: contexts.execute(context, shape))
        return _Recording(contexts, context, shape, graph)


@dataclass(frozen=True)
class _Recording:
    """Holds nothing of the call that it was made from: a lender's tensor would never be freed."""

    contexts: Contexts
    context: Any
    shape: Shape
    graph: CapturedGraph

    def replay(self) -> None:
        self.contexts.stream.launch(self.graph)
        self.contexts.stream.wait()

    def run(self) -> None:
        self.contexts.execute(self.context, self.shape)
        self.contexts.stream.wait()
