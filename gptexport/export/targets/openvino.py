"""`--target openvino`: for OpenVINO, through its own package or ONNX Runtime's plugin, which takes each graph whole.

In bfloat16 the graph computes in float32 over weights stored in bfloat16, and the runtime tells OpenVINO to compute in
bfloat16. OpenVINO rounds where it pays, and the logits leave its last product in float32. `decode` runs on ONNX
Runtime's CPU provider, whose attention writes into the cache where it lies: OpenVINO would copy all of it at each step.

Quantized weights are ONNX's own DequantizeLinear, over the bytes that `decode` reads on the CPU provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptexport.errors import ExportError
from gptexport.export.targets.base import Target
from gptexport.precision import BFLOAT16, FLOAT32, Precision
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers import provider_of, why_not
from gptexport_runtime.backends.ort.session import open_session
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError

if TYPE_CHECKING:
    from gptexport.export.cached import Attend
    from gptexport.export.cached_in_8_bits import Scales
    from gptexport.export.rewrites import Rewrite


def _attend(_precision: Precision) -> Attend:
    from gptexport.export.cached import group_query_attention, lengths_of_rows

    return group_query_attention(lengths_of_rows)


def _attend_in_8_bits(scales: Scales) -> Attend:
    from gptexport.export.cached import lengths_of_rows
    from gptexport.export.cached_in_8_bits import attend_in_8_bits

    return attend_in_8_bits(lengths_of_rows, scales)


def _rewrites(precision: Precision) -> Sequence[Rewrite]:
    from gptexport.export.rewrites.dequantize import WRITE_OUT_QUANTIZED
    from gptexport.export.rewrites.rms_norm import WRITE_OUT_RMS_NORMS
    from gptexport.export.rewrites.stored import WIDEN_ARITHMETIC
    from gptexport.export.rewrites.write_out import WRITE_OUT_ATTENTION

    by_precision = WRITE_OUT_QUANTIZED if precision.quantized else WIDEN_ARITHMETIC
    return by_precision, WRITE_OUT_ATTENTION, WRITE_OUT_RMS_NORMS  # in float32, in which a scale is not rounded


def _runs_on(precision: Precision) -> tuple[str, ...]:
    """The graph in float32 is plain ONNX. In bfloat16 a CPU provider would compute something else: float32."""
    return ("openvino", "cpu") if precision.runs_on_cpu else ("openvino",)


def _check(path: Path, head: Head) -> None:
    """OpenVINO must take the graph as one piece: by its own word where it runs, else as far as is known.

    Raises:
        ExportError: it does not.
    """
    if head.cached:
        return
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    if any(node.op_type == "Attention" for node in nodes):
        raise ExportError(
            f"the graph {head} has attention that could not be written out, which OpenVINO's provider does not take. "
            "Pass target cpu or portable."
        )
    if why_not("openvino") is None:
        try:
            provider = provider_of("openvino")
            provider.bind().open(lambda _captures: open_session(path, provider, OpenOptions()), head, OpenOptions(), "")
        except (ArtifactError, BackendUnavailableError) as error:
            raise ExportError(f"the graph {head} is not for OpenVINO: {error}") from error


OPENVINO = Target(
    name="openvino",
    help="for OpenVINO on a CPU, in bfloat16 where it has it",
    takes=lambda precision: precision is BFLOAT16 or precision.dtype == FLOAT32.dtype,
    min_opset=23,
    runs_on=_runs_on,
    cached_on_cpu=True,
    score_parts=4,
    check=_check,
    attend=_attend,
    attend_in_8_bits=_attend_in_8_bits,
    rewrites=_rewrites,
)
