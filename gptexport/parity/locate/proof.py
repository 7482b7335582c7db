"""Is a value of the graph the module's own? Proved on a graph that is right: there the two agree to rounding noise.

A graph that is wrong cannot prove it: what differs may be the fault, or another value than the one that was meant. So
before a step is accused, the boundaries of modules that are not PyTorch's own are looked at where nothing is wrong: in
the graph itself, if it passed, else in a fresh export.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn as nn

from gptexport.casting import Cast
from gptexport.parity.locate.align import Boundary, find_boundaries
from gptexport.parity.locate.intermediate import run_with_intermediates
from gptexport.parity.locate.observe import HookCall, record_calls
from gptexport.parity.measure.float64 import in_float64
from gptexport.parity.measure.graph_index import GraphIndex
from gptexport.parity.measure.metrics import Ids
from gptexport.precision import Precision

AGREES = 1e3  # times the noise that both have gathered: another value is off by more, a right one by less


def known(name: str, boundary: Boundary, proven: Collection[HookCall]) -> Boundary:
    """The boundary as far as it is certain, or proven."""
    if boundary.certain:
        return boundary
    return Boundary(
        boundary.input if HookCall(name, "in") in proven else None,
        boundary.output if HookCall(name, "out") in proven else None,
    )


def prove_boundaries(
    model: nn.Module, graph: Path, ids: Ids, precision: Precision, *, eager: Cast, device: str = "cpu"
) -> set[HookCall]:
    """Where a graph that is right holds the module's own value, of the boundaries that are not certain.

    Args:
        eager: the model in the graph's dtype.
    """
    index = GraphIndex(onnx.load(str(graph), load_external_data=False).graph)
    guesses: dict[HookCall, str] = {}
    for name, boundary in find_boundaries(index, model).items():
        for call, value in ((HookCall(name, "in"), boundary.input), (HookCall(name, "out"), boundary.output)):
            if value is not None and not boundary.certain and value not in index.inputs:
                guesses[call] = value
    if not guesses:
        return set()
    values = run_with_intermediates(graph, ids, list(guesses.values()), precision, device=device)
    with eager:
        own = record_calls(model, torch.from_numpy(ids), guesses)
    with in_float64(model):
        exact = record_calls(model, torch.from_numpy(ids), guesses)
    return {
        call
        for call, value in guesses.items()
        if call in exact and call in own and _agree(values[value], own[call], exact[call], precision.eps)
    }


def _agree(value: np.ndarray, own: torch.Tensor, exact: torch.Tensor, eps: float) -> bool:
    if value.size != exact.numel() or not exact.is_floating_point() or not bool(exact.isfinite().all()):
        return False
    expected = exact.double().numpy().reshape(-1)
    noise = _rms(own.double().numpy().reshape(-1) - expected) + eps / 2 * _rms(expected)
    return _rms(value.astype(np.float64).reshape(-1) - expected) <= AGREES * noise


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))
