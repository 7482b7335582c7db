"""What one thread needs to run an engine: a stream, device memory, execution contexts.

A shape that comes once runs in the thread's one roaming context. A shape that comes again gets a context of its own,
because a CUDA graph is valid only while its context keeps its shape, and from its second run there it is replayed.
All contexts of a lane share one block of activation memory: they never run at the same time.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import Borrowed
from gptexport_runtime.backends.tensorrt.cuda import Buffer, CapturedGraph, Stream
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS
from gptexport_runtime.errors import ExecutionError

SEEN_SHAPES = 64  # how far back a lane remembers that a shape came once

Shape = tuple[int, int]


class Fixed:
    """An execution context that keeps one shape, and the CUDA graph of it once there is one."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.warm = False  # it ran once: whatever TensorRT postpones to the first run is done
        self.capturable = True
        self.graph: CapturedGraph | None = None


class Lane:
    """One thread's way to run an engine. Not to be shared by threads."""

    def __init__(self, library: Any, engine: Any, cudart: Any, path: Path, captured_shapes: int) -> None:
        self.stream = Stream(cudart)
        self._trt, self._engine, self._cudart, self._path = library, engine, cudart, path
        self._limit = captured_shapes
        self._ids, self._logits, self._activations = Buffer(cudart), Buffer(cudart), Buffer(cudart)
        self._fixed: OrderedDict[Shape, Fixed] = OrderedDict()  # the least recently used first
        self._seen: OrderedDict[Shape, None] = OrderedDict()
        self._roaming = self._make_context(specialize=False)

    def run(self, ids: NDArray[np.int64], out: NDArray[np.float32], profile: int) -> None:
        """Compute logits of `ids` into `out`, both C-contiguous in host memory."""
        self._reserve(ids.nbytes, out.nbytes, profile)
        self.stream.to_device(self._ids.address, ids.ctypes.data, ids.nbytes)
        self._enqueue((ids.shape[0], ids.shape[1]), profile)
        self.stream.to_host(out.ctypes.data, self._logits.address, out.nbytes)
        self.stream.wait()

    def run_on_device(self, ids: NDArray[np.int64] | Borrowed, shape: tuple[int, int, int], profile: int) -> Buffer:
        """Compute logits of `ids` into memory of their own. Without a CUDA graph, whose addresses are fixed."""
        B, T, V = shape
        logits = Buffer(self._cudart, 4 * B * T * V)
        if isinstance(ids, Borrowed):
            address = ids.address
            self._reserve(0, 0, profile)
        else:
            self._reserve(ids.nbytes, 0, profile)
            self.stream.to_device(self._ids.address, ids.ctypes.data, ids.nbytes)
            address = self._ids.address
        self._prepare(self._roaming, (B, T), profile, address, logits.address)
        self._execute(self._roaming, (B, T))
        self.stream.wait()  # so that the caller may read the logits from any stream, and free the ids
        return logits

    def read_ids(self, ids: Borrowed) -> NDArray[np.int64]:
        """Ids that are on the GPU, copied to the host to be checked there."""
        host = np.empty(ids.shape, dtype=np.int64)
        self.stream.to_host(host.ctypes.data, ids.address, host.nbytes)
        self.stream.wait()
        return host

    def _reserve(self, ids: int, logits: int, profile: int) -> None:
        needed = int(self._engine.get_device_memory_size_for_profile_v2(profile))
        wanted = ((self._ids, ids), (self._logits, logits), (self._activations, max(needed, 1)))
        if any(size > buffer.size for buffer, size in wanted):
            self._fixed.clear()  # their graphs hold the old addresses
            for buffer, size in wanted:
                buffer.reserve(size)

    def _enqueue(self, shape: Shape, profile: int) -> None:
        """Put the computation from this lane's ids to its logits into the stream."""
        fixed = self._fixed_for(shape, profile)
        if fixed is None:
            self._prepare(self._roaming, shape, profile, self._ids.address, self._logits.address)
            self._execute(self._roaming, shape)
        elif fixed.graph is not None:
            self.stream.launch(fixed.graph)
        else:
            if fixed.warm and fixed.capturable:
                fixed.graph = self._capture(fixed, shape)
            if fixed.graph is not None:
                self.stream.launch(fixed.graph)
            else:
                self._execute(fixed.context, shape)
            fixed.warm = True

    def _fixed_for(self, shape: Shape, profile: int) -> Fixed | None:
        """The context of a shape that came before; None for one that is new."""
        if shape in self._fixed:
            self._fixed.move_to_end(shape)
            return self._fixed[shape]
        if self._limit == 0 or shape not in self._seen:
            self._seen[shape] = None
            while len(self._seen) > SEEN_SHAPES:
                self._seen.popitem(last=False)
            return None
        while len(self._fixed) >= self._limit:
            self._fixed.popitem(last=False)
        fixed = Fixed(self._make_context(specialize=True))
        self._prepare(fixed.context, shape, profile, self._ids.address, self._logits.address)
        self._fixed[shape] = fixed
        return fixed

    def _make_context(self, *, specialize: bool) -> Any:
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

    def _prepare(self, context: Any, shape: Shape, profile: int, ids: int, logits: int) -> None:
        if context.active_optimization_profile != profile:
            self._demand(context.set_optimization_profile_async(profile, self.stream.handle), "profile", shape)
            self.stream.wait()
        context.set_device_memory(self._activations.address, self._activations.size)
        self._demand(context.set_input_shape(INPUT_IDS, shape), "shape", shape)
        self._demand(not context.infer_shapes(), "shapes derived from it", shape)
        for name, address in ((INPUT_IDS, ids), (LOGITS, logits)):
            self._demand(context.set_tensor_address(name, address), f"address of {name}", shape)

    def _execute(self, context: Any, shape: Shape) -> None:
        self._demand(context.execute_async_v3(self.stream.handle), "run", shape)

    def _capture(self, fixed: Fixed, shape: Shape) -> CapturedGraph | None:
        """None where TensorRT does something that cannot be captured: the shape then runs without."""
        self.stream.wait()
        self.stream.begin_capture()
        try:
            try:
                self._execute(fixed.context, shape)
            finally:
                graph = self.stream.end_capture()
        except ExecutionError as error:
            fixed.capturable = False
            warnings.warn(f"no CUDA graph for B,T = {shape}: {error}", RuntimeWarning, stacklevel=2)
            return None
        return graph

    def _demand(self, succeeded: bool, what: str, shape: Shape) -> None:
        """TensorRT answers False where others raise."""
        if not succeeded:
            B, T = shape
            raise ExecutionError(f"{self._path} failed at B={B}, T={T}: TensorRT refuses the {what}.")
