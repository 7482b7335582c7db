"""How graphs are to be opened and run: what `load` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from gptexport_runtime.backends.gpu.captured import CAPTURED_TOKENS
from gptexport_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CudaOptions:
    """How ONNX Runtime works on a GPU: an argument of `load`.

    graphs: repeat small shapes that come again as captured CUDA graphs. None: where the graph and ONNX Runtime allow
        it; True: it is an error where they do not; False: never. See gpu/captured.py for which shapes, and
        docs/runtime.md for their memory.
    captured_tokens: B×T of the largest shape that is captured. More launches are saved where launching 512 tokens, say,
        takes longer than computing them; each captured graph holds 4·V bytes a token of logits.
    tune_gemms: let ONNX Runtime time its own kernels for products of few rows beside cuBLAS's, when a shape first
        comes, and take the fastest (`ep.cuda.enable_gemm_auto_tune`, since 1.31). Sums may then be of another order.
    tf32: let float32 products round their operands to TF32's 10 bits: faster, and other numbers than the model's.
    memory_limit: bytes that ONNX Runtime's arena, for activations, may take of the GPU; None: all.

    Raises:
        InputError: a number is below 1.
    """

    graphs: bool | None = None
    captured_tokens: int = CAPTURED_TOKENS
    tune_gemms: bool = False
    tf32: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.memory_limit is not None and not _is_count(self.memory_limit):
            raise InputError(f"memory_limit is {self.memory_limit!r}; expected an integer of 1 or more, or None.")
        if not _is_count(self.captured_tokens):
            raise InputError(f"captured_tokens is {self.captured_tokens!r}; expected an integer of 1 or more.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a backend opens every graph. See `load`.

    dtype: what an artifact says that it is in, for providers that are told what to compute in.
    """

    threads: int | None = None
    prepack: bool = True
    spin: bool = True
    cuda: CudaOptions = CudaOptions()
    dtype: str = "float32"
