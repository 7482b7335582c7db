"""What must hold of a written graph file before anyone sees it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from gptexport.config import Target
from gptexport.errors import ExportError
from gptexport.export.cuda_kernels import registered, without_kernel
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import AXIS_B, AXIS_T, INPUT_IDS, LOGITS

Audit = dict[str, dict[str, int]]  # by operator: "expected" and "achieved"


def check_graph(path: Path, kind: str) -> dict[str, int]:
    """Check the file against the ONNX specification, with full shape inference, and its interface against the contract.

    Returns: how many nodes there are of each operator.

    Raises:
        ExportError: the file is not valid ONNX, or its axes are not symbolic.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    model = onnx.load(str(path), load_external_data=False)
    interface = [
        (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*model.graph.input, *model.graph.output)
    ]
    if kind != heads.LOGITS.name:  # made from the logits graph by us: the checker has checked it
        return _count_nodes(model)
    match interface:
        case [(name, [B, T]), (output, [B2, T2, int(V)])] if V > 0:
            if (name, output) == (INPUT_IDS, LOGITS) and (B, T) == (B2, T2) == (AXIS_B, AXIS_T):
                return _count_nodes(model)
    raise ExportError(
        f"the exported graph takes and returns {interface}; expected {INPUT_IDS} ({AXIS_B},{AXIS_T}) and "
        f"{LOGITS} ({AXIS_B},{AXIS_T},V). The forward fixes an axis, or does not return (B,T,V)."
    )


def check_kernels(path: Path, kind: str) -> None:
    """Every node that computes with floats must have a kernel of ONNX Runtime's CUDA provider, by its own registry.

    Raises:
        ExportError: one has none: it would run on the CPU, or the graph would not open.
    """
    missing = without_kernel(path)
    if missing:
        raise ExportError(
            f"the graph {kind} has operations that ONNX Runtime {registered()[0]} does not run with CUDA: "
            f"{', '.join(sorted(set(missing))[:5])}. Pass another --dtype, or --target portable."
        )


def describe_checks(target: Target, *, by_twin: bool, ran: bool) -> dict[str, str]:
    """What an export has made sure of by the time that it writes its manifest, in words; and what it has not."""
    run = "as it is, on the CPU" if ran else "not run: ONNX Runtime has no bfloat16 on the CPU"
    if by_twin:
        run = "its float32 twin, on the CPU; the rounding of the 16-bit kernels is not checked"
    kernels = {"kernels": f"registered in onnxruntime-gpu {registered()[0]}; none has run"} if target == "cuda" else {}
    return {"run": run, **kernels}


def _count_nodes(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


def compare_counts(expected: dict[str, int], achieved: dict[str, int]) -> Audit:
    """How many operations should have stayed whole in the trace, and how many did."""
    return {op: {"expected": count, "achieved": achieved.get(op, 0)} for op, count in expected.items()}


def check_audit(audit: Audit, strict: bool) -> Audit:
    """The audit as it was given, if nothing is short in it.

    Raises:
        ExportError: fewer than expected of some operation, where `strict`.
    """
    short = [
        f"{op}: {row['achieved']} of {row['expected']}"
        for op, row in audit.items()
        if row["achieved"] < row["expected"]
    ]
    if short and strict:
        raise ExportError(
            f"fewer whole operations than expected ({', '.join(short)}). This is a bug in gptexport: please report it."
        )
    return audit
