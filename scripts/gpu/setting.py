"""What the GPU check measures on: a GPU; or, to try the check itself, a CPU or the pretended GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.precision import PRECISIONS
from scripts.bench.models import SIZES

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Devices, sizes and shapes."""

    name: str  # as --on takes it
    title: str
    device: Literal["cuda", "cpu"]  # of ONNX Runtime
    torch_device: Literal["cuda", "cpu"]
    dtypes: tuple[str, ...] = DTYPES
    dtype: str = "bfloat16"  # of the speeds
    other_dtype: str | None = "float16"  # whose speed is measured too
    size: str = "124M"
    xl_size: str = "1558M"
    shapes: str = "8x1024,1x512,1x128,1x1"
    xl_shapes: str = "4x1024"
    parity_shapes: str = "1x1,3x17,1x128,2x511,2x1024"  # flash attention has several blocks from 129 tokens on
    score_shape: tuple[int, int] = (64, 1024)
    new_tokens: int = 64
    growing_calls: int = 10_000
    tokens: int = 8192  # of the micro benchmark's rows

    @property
    def lays_out_logits(self) -> bool:
        """Whether a bundle can have logits in 16 bits and in padded rows, as the switches of an export ask for."""
        return PRECISIONS[self.dtype].bits == 16

    @property
    def config(self) -> GPTConfig:
        return SIZES[self.size]


GPU = Setting(name="gpu", title="a GPU", device="cuda", torch_device="cuda")
# a model of two layers at a few shapes: every part runs, and no figure means anything
PRETENDED = Setting(
    name="pretended",
    title="a pretended GPU, to try the check: no figure counts",
    device="cuda",
    torch_device="cpu",
    size="tiny",
    xl_size="tiny",
    shapes="2x64,1x16,1x1",
    xl_shapes="2x64",
    parity_shapes="1x1,2x64",
    score_shape=(8, 64),
    new_tokens=8,
    growing_calls=1000,
    tokens=64,
)
# float32 alone: a CPU has no kernels for the 16-bit graphs of --target cuda
CPU = replace(
    PRETENDED,
    name="cpu",
    title="a CPU, to try the check: no figure counts",
    device="cpu",
    dtypes=("float32",),
    dtype="float32",
    other_dtype=None,
    growing_calls=100,
)
SETTINGS = {setting.name: setting for setting in (GPU, CPU, PRETENDED)}
