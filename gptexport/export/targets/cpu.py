"""`--target cpu`: rewritten for ONNX Runtime's CPU provider, by fusion.

Each fused operation is one kernel, and one pass over memory, where the portable graph has several. Other runtimes do
not have them.

SkipLayerNormalization is not among them: ONNX Runtime 1.31.1's takes 80 ms of a one-thread 1x1024 forward of GPT-2 124M
where Add and LayerNormalization take 22.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptexport.export.targets.base import Target
from gptexport.precision import FLOAT32, INT4, INT8W, Precision

if TYPE_CHECKING:
    from gptexport.export.cached import Attend
    from gptexport.export.cached_in_8_bits import Scales
    from gptexport.export.rewrites import Audit, Rewrite
    from gptexport.export.trace import Trace


def _prepare(trace: Trace, precision: Precision) -> Audit:
    from gptexport.export.rewrites.widen import widen_hidden

    return {} if precision.quantized else widen_hidden(trace)


def _attend(_precision: Precision) -> Attend:
    from gptexport.export.cached import group_query_attention, lengths_of_rows

    return group_query_attention(lengths_of_rows)


def _attend_in_8_bits(scales: Scales) -> Attend:
    from gptexport.export.cached import lengths_of_rows
    from gptexport.export.cached_in_8_bits import attend_in_8_bits

    return attend_in_8_bits(lengths_of_rows, scales)


def _rewrites(_precision: Precision) -> Sequence[Rewrite]:
    from gptexport.export.rewrites.gelu import FUSE_GELUS
    from gptexport.export.rewrites.group_query_attention import FUSE_ATTENTION
    from gptexport.export.rewrites.rotary import FUSE_ROTARY
    from gptexport.export.rewrites.tied_head import FUSE_TIED_HEADS

    return FUSE_GELUS, FUSE_ATTENTION, FUSE_ROTARY, FUSE_TIED_HEADS


def _note(precision: Precision) -> str | None:
    if precision not in (INT4, INT8W):
        return None
    return f"{precision.name} here is for tokens one at a time: prompts and score are faster with target openvino"


CPU = Target(
    name="cpu",
    help="fused for ONNX Runtime on a CPU",
    takes=lambda precision: precision.dtype == FLOAT32.dtype,  # its fused kernels compute in nothing else
    min_opset=23,
    note=_note,
    prepare=_prepare,
    attend=_attend,
    attend_in_8_bits=_attend_in_8_bits,
    rewrites=_rewrites,
)
