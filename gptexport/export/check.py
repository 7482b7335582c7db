"""What must hold of a written graph before anyone sees it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gptexport_runtime
import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn as nn
from gptexport_runtime.contract import AXIS_B, AXIS_T, INPUT_IDS, LOGITS
from gptexport_runtime.errors import BackendUnavailableError

from gptexport.errors import ExportError

# Far above what rounding does and far below what a wrong graph does. The verdict on exactness is parity's, not this.
MAX_RELATIVE_RMS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Sample:
    """Ids of a shape that was not traced, and what the eager model says to them."""

    ids: npt.NDArray[np.int64]  # (B,T)
    logits: npt.NDArray[np.float32]  # (B,T,V)


def take_samples(model: nn.Module, *, block_size: int, vocab_size: int, longest: int) -> list[Sample]:
    """Run the eager model at (1,1), at an odd (3,T), and at T = block_size if the tracer does not vouch for it."""
    draw = np.random.default_rng(0)
    samples = []
    for B, T in [(1, 1), (3, min(11, block_size))] + [(1, block_size)] * (longest < block_size):
        ids = draw.integers(0, vocab_size, (B, T))
        with torch.no_grad():
            samples.append(Sample(ids, model(torch.from_numpy(ids)).float().numpy()))
    return samples


def check_graph(path: Path) -> dict[str, int]:
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
    match interface:
        case [(name, [B, T]), (output, [B2, T2, int(V)])] if V > 0:
            if (name, output) == (INPUT_IDS, LOGITS) and (B, T) == (B2, T2) == (AXIS_B, AXIS_T):
                return dict(Counter(node.op_type for node in model.graph.node))
    raise ExportError(
        f"the exported graph takes and returns {interface}; expected {INPUT_IDS} ({AXIS_B},{AXIS_T}) and "
        f"{LOGITS} ({AXIS_B},{AXIS_T},V). The forward fixes an axis, or does not return (B,T,V)."
    )


def run_samples(path: Path, samples: list[Sample], dtype: str) -> float | None:
    """Run the written graph in the runtime at shapes it was not traced at, against the eager model.

    Returns: the worst relative RMS difference, or None where the CPU provider has no kernels for `dtype`.

    Raises:
        ExportError: it does not run, or is not the same function.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    if dtype == "bfloat16":
        return None  # ONNX Runtime's CPU provider has no bfloat16 kernels
    worst = 0.0
    # without prepacking: the export's memory is bounded, and speed does not matter here
    with gptexport_runtime.load(path, device="cpu", prepack=False) as session:
        for sample in samples:
            try:
                actual = session.logits(sample.ids)
            except BackendUnavailableError:
                raise
            except Exception as error:
                raise ExportError(
                    f"the exported graph fails at B,T = {sample.ids.shape}, which it was not traced at: {error}"
                ) from error
            scale = np.sqrt(np.mean(np.square(sample.logits, dtype=np.float64)))
            difference = np.sqrt(np.mean(np.square(actual - sample.logits, dtype=np.float64)))
            worst = max(worst, float(difference / scale) if scale else float(difference))
    if not worst <= MAX_RELATIVE_RMS[dtype]:  # NaN fails
        raise ExportError(
            f"the exported graph differs from the eager model by {worst:.1e} relative RMS; expected at most "
            f"{MAX_RELATIVE_RMS[dtype]:.0e} for {dtype}. Not a rounding difference: the forward depends on something "
            "that tracing fixed (random numbers, global state), or its weights hold NaN or overflow in this dtype."
        )
    return worst


def audit(expected: dict[str, int], achieved: dict[str, int], *, strict: bool) -> dict[str, dict[str, int]]:
    """How many operations should have stayed whole, and how many did.

    Raises:
        ExportError: fewer than expected, where `strict` (gptexport's own models; a user's may have reasons).
    """
    rows = {op: {"expected": count, "achieved": achieved.get(op, 0)} for op, count in expected.items()}
    short = [
        f"{op}: {row['achieved']} of {row['expected']}" for op, row in rows.items() if row["achieved"] < row["expected"]
    ]
    if short and strict:
        raise ExportError(
            f"operations fell apart in the trace ({', '.join(short)}). This is a bug in gptexport: please report it."
        )
    return rows
