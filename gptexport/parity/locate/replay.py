"""Replay the model on the graph's own values, so that each step is judged alone, on the inputs that the graph gave it.

The graph's intermediate outputs are put into the checkpoint's model, in float64 and in eager, wherever both have the
value. What was wrong before a step is therefore wrong in neither: only the step itself is compared.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn as nn

from gptexport.casting import Cast
from gptexport.parity.locate.align import Boundary, find_boundaries
from gptexport.parity.locate.intermediate import Values, run_with_intermediates
from gptexport.parity.locate.observe import (
    AlignedValue,
    Alignment,
    HookCall,
    Observe,
    StopReplay,
    align_calls,
    observed,
)
from gptexport.parity.locate.proof import known
from gptexport.parity.measure.float64 import in_float64, uncompiled
from gptexport.parity.measure.graph_index import GraphIndex
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.names import block_of, short
from gptexport.precision import Precision
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS

# A step of another library may round otherwise than PyTorch's own: twice its noise is nothing for one operation alone.
STEP_RATIO = 4.0
STEP_MAX_RATIO = 16.0
TINY = 1e-100  # instead of a division by zero


@dataclass(frozen=True, kw_only=True)
class StepError:
    """How wrong one step is, given its own inputs."""

    name: str  # "h.7.mlp.gelu"
    block: str | None  # "h.7"; None outside of the blocks
    operators: tuple[str, ...]  # of the graph, from the inputs that are known to here
    ratio: float  # RMS error over eager's own, on the same inputs
    max_ratio: float
    relative_rms: float
    noise_rms: float  # the yardsticks themselves
    noise_max: float

    @property
    def right(self) -> bool:
        return self.ratio <= STEP_RATIO and self.max_ratio <= STEP_MAX_RATIO  # NaN is not


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A model and a graph on the same ids, with the graph's aligned values, to be put into the model."""

    model: nn.Module
    ids: torch.Tensor
    precision: Precision
    alignment: Alignment
    actual: dict[str, torch.Tensor]
    operators: dict[str, tuple[str, ...]]


def align_model(model: nn.Module, graph: Path, ids: Ids, proven: Collection[HookCall] = ()) -> Alignment:
    """Which values of the graph are which of the model's, in the order in which it computes them.

    Args:
        proven: where a boundary that is not certain was found to be right.
    """
    index = GraphIndex(onnx.load(str(graph), load_external_data=False).graph)
    boundaries = {name: known(name, boundary, proven) for name, boundary in find_boundaries(index, model).items()}
    boundaries[""] = Boundary(INPUT_IDS, LOGITS, certain=True)
    alignment = align_calls(model, torch.from_numpy(ids), boundaries)
    computed = [found for found in alignment.aligned if found.value not in index.inputs]
    return Alignment(alignment.calls, alignment.values, computed)


def start_replay(
    model: nn.Module,
    graph: Path,
    ids: Ids,
    alignment: Alignment,
    aligned: list[AlignedValue],
    *,
    precision: Precision,
    device: str = "cpu",
    optimize: bool = True,
) -> Replay:
    """Run a copy of the graph that returns these aligned values too."""
    names = [found.value for found in aligned]
    values = run_with_intermediates(graph, ids, names, precision, device=device, optimize=optimize)
    tensors = {found.value: _as_tensor(values, found) for found in aligned}
    actual = {value: tensor for value, tensor in tensors.items() if tensor is not None}
    index = GraphIndex(onnx.load(str(graph), load_external_data=False).graph)
    known: set[str] = set()
    operators = {}
    for value in actual:
        operators[value] = tuple(index.operators_between(known, value))
        known.add(value)
    return Replay(
        model=model,
        ids=torch.from_numpy(ids),
        precision=precision,
        alignment=Alignment(
            alignment.calls,
            {number: value for number, value in alignment.values.items() if value in actual},
            [found for found in aligned if found.value in actual],
        ),
        actual=actual,
        operators=operators,
    )


def _as_tensor(values: Values, found: AlignedValue) -> torch.Tensor | None:
    array = values[found.value]
    width = found.shape[-1]
    if array.shape[:-1] == tuple(found.shape[:-1]) and not array[..., width:].any():
        array = array[..., :width]  # a target widens hidden layers by zeros
    if array.size != int(np.prod(found.shape)):
        return None  # padded or broadcast: not the same thing
    dtype = np.int64 if array.dtype.kind == "i" else array.dtype
    return torch.from_numpy(np.array(array, dtype=dtype)).reshape(found.shape)


def judge_steps(replay: Replay, eager: Cast) -> list[StepError]:
    """Every step on its own, in order of execution.

    Args:
        eager: the model in the graph's dtype, whose noise is the yardstick.
    """
    noise: dict[int, torch.Tensor] = {}
    errors: list[StepError] = []
    aligned = {found.call: found for found in replay.alignment.aligned}
    last = max(aligned, default=-1)

    def remember(call: int, tensor: torch.Tensor) -> torch.Tensor | None:
        if call in aligned:
            noise[call] = tensor
        return replaced(replay, call, tensor)

    def judge(call: int, tensor: torch.Tensor) -> torch.Tensor | None:
        if call in aligned:
            errors.append(_step_error(replay, aligned[call], tensor, noise.pop(call)))
        return replaced(replay, call, tensor)

    def until_last(observe: Observe) -> Observe:
        def stopping(call: int, tensor: torch.Tensor) -> torch.Tensor | None:
            if call > last:
                raise StopReplay
            return observe(call, tensor)

        return stopping

    with torch.no_grad():
        with eager as model, suppress(StopReplay), uncompiled(), observed(model, until_last(remember)):
            model(replay.ids)
        with suppress(StopReplay), in_float64(replay.model), observed(replay.model, until_last(judge)):
            replay.model(replay.ids)
    return errors


def replaced(replay: Replay, call: int, tensor: torch.Tensor) -> torch.Tensor | None:
    """The graph's own value at a hook call, in the dtype that the run is in; None where the graph has none."""
    value = replay.alignment.values.get(call)
    return None if value is None else replay.actual[value].to(tensor.dtype)


def _step_error(replay: Replay, found: AlignedValue, expected: torch.Tensor, eager: torch.Tensor) -> StepError:
    noise_rms, noise_max = _yardsticks(expected, eager, replay.precision)
    rms, largest, scale = _errors(replay.actual[found.value], expected)
    return StepError(
        name=label(found),
        block=block_of(found.module),
        operators=replay.operators[found.value],
        ratio=rms / noise_rms,
        max_ratio=largest / noise_max,
        relative_rms=rms / max(scale, TINY),
        noise_rms=noise_rms,
        noise_max=noise_max,
    )


def _yardsticks(expected: torch.Tensor, eager: torch.Tensor, precision: Precision) -> tuple[float, float]:
    """Eager's RMS and largest error, and at least what rounding a perfect result would do."""
    exact = expected.to(torch.float64)
    if not expected.is_floating_point() or not exact.isfinite().all():
        return TINY, TINY
    noise = eager.to(torch.float64) - exact
    floor = precision.eps / 2
    rms = max(rms_of(noise), floor * rms_of(exact), TINY)
    return rms, max(float(noise.abs().max()), floor * float(exact.abs().max()), TINY)


def _errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float, float]:
    """RMS and largest error, and the RMS of what was expected."""
    exact = expected.to(torch.float64)
    if not exact.isfinite().all():
        return 0.0, 0.0, 0.0  # wrong already before this step
    error = actual.to(torch.float64) - exact
    if not error.isfinite().all():
        return np.inf, np.inf, rms_of(exact)
    return rms_of(error), float(error.abs().max()), rms_of(exact)


def rms_of(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def label(found: AlignedValue) -> str:
    """`h.7.mlp.gelu`, or `h.7 before ln_2` for what no module of its own computes."""
    name = short(found.module)
    if found.side == "out":
        return name or "logits"
    parent, _, child = name.rpartition(".")
    return f"{parent} before {child}" if parent and not child.isdecimal() else f"before {name}"
