"""`--target cuda`: rewritten for ONNX Runtime's CUDA provider, by fusion.

What each node is, and why this one and not another of ONNX Runtime's, stands in docs/targets.md with its sources.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptexport.errors import ExportError
from gptexport.export.targets.base import Kernels, Target
from gptexport.precision import Precision
from gptexport_runtime.contract.heads import Head

if TYPE_CHECKING:
    from gptexport.export.cached import Attend
    from gptexport.export.rewrites import Rewrite

FLASH_HEAD_SIZES = range(8, 257, 8)  # those of ONNX Runtime's flash kernels (flash_attention/flash_api.cc)

# What ONNX Runtime 1.31.1 calls its attention kernels in the log of ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1.
FLASH, CUDNN, XQA, EFFICIENT, MATH = (
    "FLASH_ATTENTION",
    "CUDNN_FLASH_ATTENTION",
    "XQA",
    "EFFICIENT_ATTENTION",
    "MATH",
)


def _expected_kernels(precision: Precision, head_sizes: Collection[int]) -> Kernels:
    """Which attention kernels a GPU of compute capability 8.0 or more is expected to take, any of them.

    An expectation: nothing has run. `scripts/gpu` reads from ONNX Runtime's log which one did.
    """
    if not head_sizes:
        return {}
    if _has_cached_kernel(precision) and all(size in FLASH_HEAD_SIZES for size in head_sizes):
        return {"Attention": [FLASH], "GroupQueryAttention": [FLASH, CUDNN, XQA]}
    return {"Attention": [EFFICIENT, MATH] if all(size % 8 == 0 and size <= 1024 for size in head_sizes) else [MATH]}


def _has_cached_kernel(precision: Precision) -> bool:
    """Whether GroupQueryAttention has a kernel. The CUDA provider has none in float32: the portable form stays."""
    from gptexport.export.targets.kernels import has_kernel

    return has_kernel("com.microsoft:GroupQueryAttention", precision.stored_as[0].lower())


def _attend(precision: Precision) -> Attend:
    from gptexport.export.cached import group_query_attention, lengths_on_the_device, scatter_and_mask

    return group_query_attention(lengths_on_the_device) if _has_cached_kernel(precision) else scatter_and_mask


def _rewrites(_precision: Precision) -> Sequence[Rewrite]:
    from gptexport.export.rewrites.cut_tables import CUT_TABLES
    from gptexport.export.rewrites.gelu import FUSE_GELUS
    from gptexport.export.rewrites.in_float32 import WIDEN_WITHOUT_KERNEL
    from gptexport.export.rewrites.side_by_side import HEADS_SIDE_BY_SIDE
    from gptexport.export.rewrites.skip_norm import FUSE_NORMS
    from gptexport.export.rewrites.tied_head import FUSE_TIED_HEADS

    return CUT_TABLES, FUSE_GELUS, HEADS_SIDE_BY_SIDE, FUSE_NORMS, FUSE_TIED_HEADS, WIDEN_WITHOUT_KERNEL


def _runs_on(precision: Precision) -> tuple[str, ...]:
    """In float32 the CPU has a kernel for each fused node too, so parity can be checked there."""
    return ("cuda", "cpu") if precision.bits == 32 else ("cuda",)


def _check(path: Path, head: Head) -> None:
    """Every node that computes with floats must have a kernel of ONNX Runtime's CUDA provider, by its own registry.

    Raises:
        ExportError: one has none: it would run on the CPU, or the graph would not open.
    """
    from gptexport.export.targets.kernels import registered, without_kernel

    missing = without_kernel(path)
    if missing:
        raise ExportError(
            f"the graph {head} has operations that ONNX Runtime {registered()[0]} does not run with CUDA: "
            f"{', '.join(sorted(set(missing))[:5])}. Pass another dtype, or target portable."
        )


def _checked() -> str:
    from gptexport.export.targets.kernels import registered

    return f"registered in onnxruntime-gpu {registered()[0]}; none has run"


CUDA = Target(
    name="cuda",
    help="fused for ONNX Runtime on a GPU",
    takes=lambda precision: not precision.quantized,
    min_opset=23,
    runs_on=_runs_on,
    attend=_attend,
    rewrites=_rewrites,
    score_chunk=2048,  # 0.4 GB of float32 at GPT-2's vocabulary
    lays_out_logits=lambda precision: precision.bits == 16,
    check=_check,
    checked=_checked,
    expected_kernels=_expected_kernels,
)
