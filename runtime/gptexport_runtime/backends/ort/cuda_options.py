"""How ONNX Runtime's CUDA provider is asked to work, and why so."""

from __future__ import annotations

from dataclasses import dataclass

from gptexport_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CudaOptions:
    """Of `load` on a GPU, with ONNX Runtime.

    graphs: repeat small shapes that come again as CUDA graphs. None: where the graph and ONNX Runtime allow it; True:
        it is an error where they do not; False: never. See bound.py for which shapes, docs/runtime.md for their memory.
    tf32: let float32 products round their operands to TF32's 10 bits: faster, and other numbers than the model's.
    memory_limit: bytes that ONNX Runtime's arena, for activations, may take of the GPU; None: all.
    shrink_after: calls in a row that need at most a quarter of the largest before them, after which the arena gives
        back what it does not use; None: it keeps all until the session is closed.

    Raises:
        InputError: a number is below 1.
    """

    graphs: bool | None = None
    tf32: bool = False
    memory_limit: int | None = None
    shrink_after: int | None = 8

    def __post_init__(self) -> None:
        for name in ("memory_limit", "shrink_after"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name} is {value!r}; expected an integer of 1 or more, or None.")

    def of_provider(self, *, graphs: bool = False) -> dict[str, str]:
        """ONNX Runtime's provider options (core/providers/cuda/cuda_execution_provider_info.cc)."""
        options = {
            # the default, 1, would round fp32 operands: other numbers than those of the model
            "use_tf32": str(int(self.tf32)),
            # the default, kNextPowerOfTwo, doubles with every extension: a first call with 3 GB of activations would
            # make the second extension take 4, whatever it was for
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(graphs)),
        }
        if self.memory_limit is not None:
            options["gpu_mem_limit"] = str(self.memory_limit)
        return options


# weights are allocated by themselves and not in the arena, of which then every region can be given back
SESSION_ENTRIES = {"session.use_device_allocator_for_initializers": "1"}
# RunOptions (onnxruntime_run_options_config_keys.h)
SHRINK = "memory.enable_memory_arena_shrinkage"
GRAPH_ID = "gpu_graph_id"
NO_GRAPH = -1  # kCudaGraphAnnotationSkip: neither captured nor replayed
