"""How graphs are to be opened and run: what `load` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from gptexport_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CudaOptions:
    """How ONNX Runtime works on a GPU: an argument of `load`.

    graphs: repeat small shapes that come again as captured CUDA graphs. None: where the graph and ONNX Runtime allow
        it; True: it is an error where they do not; False: never. See gpu/captured.py for which shapes, and
        docs/runtime.md for their memory.
    tf32: let float32 products round their operands to TF32's 10 bits: faster, and other numbers than the model's.
    memory_limit: bytes that ONNX Runtime's arena, for activations, may take of the GPU; None: all.

    Raises:
        InputError: a number is below 1.
    """

    graphs: bool | None = None
    tf32: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        value = self.memory_limit
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"memory_limit is {value!r}; expected an integer of 1 or more, or None.")


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a backend opens every graph. See `load`."""

    threads: int | None = None
    prepack: bool = True
    spin: bool = True
    cuda: CudaOptions = CudaOptions()
