"""The first place where a graph leaves the noise: each step judged alone, on the inputs that the graph itself gave it.

The graph's own inner values are put into the checkpoint's model, in float64 and in eager, at every place that both
have. What is wrong before a place is therefore wrong in neither: only the step itself is compared.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn as nn

from gptexport.parity.expose import Values, run_exposed
from gptexport.parity.gates import EPS
from gptexport.parity.reference import in_float64
from gptexport.parity.replay import Itinerary, Place, Stop, Visit, plan, watched
from gptexport.parity.sites import GraphIndex, Site, find_sites
from gptexport.parity.tokens import Ids
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS

# A step of another library may round otherwise than PyTorch's own: twice its noise is nothing for one operation alone.
PLACE_RATIO = 4.0
PLACE_MAX_RATIO = 16.0
TINY = 1e-100  # instead of a division by zero


@dataclass(frozen=True, kw_only=True)
class PlaceError:
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
        return self.ratio <= PLACE_RATIO and self.max_ratio <= PLACE_MAX_RATIO  # NaN is not


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A model and a graph on the same ids: the graph's values at the places, to be put into the model."""

    model: nn.Module
    ids: torch.Tensor
    dtype: str
    itinerary: Itinerary
    actual: dict[str, torch.Tensor]
    operators: dict[str, tuple[str, ...]]


def line_up(model: nn.Module, graph: Path, ids: Ids) -> Itinerary:
    """Which values of the graph are which of the model's, in the order in which it computes them."""
    index = GraphIndex(onnx.load(str(graph), load_external_data=False).graph)
    itinerary = plan(model, torch.from_numpy(ids), {**find_sites(index, model), "": Site(INPUT_IDS, LOGITS)})
    places = [place for place in itinerary.places if place.value not in index.inputs]
    return Itinerary(itinerary.events, itinerary.values, places)


def walk(
    model: nn.Module,
    graph: Path,
    ids: Ids,
    itinerary: Itinerary,
    places: list[Place],
    *,
    dtype: str,
    device: str = "cpu",
    optimize: bool = True,
) -> Walk:
    """Run a copy of the graph that returns its values at `places`."""
    values = run_exposed(graph, ids, [place.value for place in places], device=device, optimize=optimize)
    tensors = {place.value: _as_tensor(values, place) for place in places}
    actual = {value: tensor for value, tensor in tensors.items() if tensor is not None}
    index = GraphIndex(onnx.load(str(graph), load_external_data=False).graph)
    known: set[str] = set()
    operators = {}
    for value in actual:
        operators[value] = tuple(index.operators_between(known, value))
        known.add(value)
    return Walk(
        model=model,
        ids=torch.from_numpy(ids),
        dtype=dtype,
        itinerary=Itinerary(
            itinerary.events,
            {number: value for number, value in itinerary.values.items() if value in actual},
            [place for place in places if place.value in actual],
        ),
        actual=actual,
        operators=operators,
    )


def _as_tensor(values: Values, place: Place) -> torch.Tensor | None:
    array = values[place.value]
    width = place.shape[-1]
    if array.shape[:-1] == tuple(place.shape[:-1]) and not array[..., width:].any():
        array = array[..., :width]  # a target widens hidden layers by zeros
    if array.size != int(np.prod(place.shape)):
        return None  # padded or broadcast: not the same thing
    return torch.from_numpy(np.array(array, dtype=np.int64 if array.dtype.kind == "i" else array.dtype)).reshape(
        place.shape
    )


def judge_places(walk: Walk, eager: nn.Module) -> list[PlaceError]:
    """Every step on its own, in order of execution.

    Args:
        eager: the model in the graph's dtype, whose noise is the yardstick.
    """
    noise: dict[int, torch.Tensor] = {}
    errors: list[PlaceError] = []
    at = {place.event: place for place in walk.itinerary.places}

    def remember(event: int, tensor: torch.Tensor) -> torch.Tensor | None:
        if event in at:
            noise[event] = tensor
        return forced(walk, event, tensor)

    def judge(event: int, tensor: torch.Tensor) -> torch.Tensor | None:
        if event in at:
            errors.append(_place_error(walk, at[event], tensor, noise.pop(event)))
        return forced(walk, event, tensor)

    last = max(at, default=-1)

    def until_last(visit: Visit) -> Visit:
        def stopping(event: int, tensor: torch.Tensor) -> torch.Tensor | None:
            if event > last:
                raise Stop
            return visit(event, tensor)

        return stopping

    with torch.no_grad():
        with suppress(Stop), watched(eager, until_last(remember)):
            eager(walk.ids)
        with suppress(Stop), in_float64(walk.model), watched(walk.model, until_last(judge)):
            walk.model(walk.ids)
    return errors


def forced(walk: Walk, event: int, tensor: torch.Tensor) -> torch.Tensor | None:
    """The graph's own value at an event, in the dtype that the run is in; None where the graph has none."""
    value = walk.itinerary.values.get(event)
    return None if value is None else walk.actual[value].to(tensor.dtype)


def _place_error(walk: Walk, place: Place, expected: torch.Tensor, eager: torch.Tensor) -> PlaceError:
    noise_rms, noise_max = _yardsticks(expected, eager, walk.dtype)
    rms, largest, scale = _errors(walk.actual[place.value], expected)
    return PlaceError(
        name=label(place),
        block=block_of(place.module),
        operators=walk.operators[place.value],
        ratio=rms / noise_rms,
        max_ratio=largest / noise_max,
        relative_rms=rms / max(scale, TINY),
        noise_rms=noise_rms,
        noise_max=noise_max,
    )


def _yardsticks(expected: torch.Tensor, eager: torch.Tensor, dtype: str) -> tuple[float, float]:
    """Eager's RMS and largest error, and at least what rounding a perfect result would do."""
    exact = expected.to(torch.float64)
    if not expected.is_floating_point() or not exact.isfinite().all():
        return TINY, TINY
    noise = eager.to(torch.float64) - exact
    floor = EPS[dtype] / 2
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


def label(place: Place) -> str:
    """`h.7.mlp.gelu`, or `h.7 before ln_2` for what no module of its own computes."""
    name = short(place.module)
    if place.side == "out":
        return name or "logits"
    parent, _, child = name.rpartition(".")
    return f"{parent} before {child}" if parent and not child.isdecimal() else f"before {name}"


def short(module: str) -> str:
    return re.sub(r"^(transformer|model)(\.|$)", "", module)


def block_of(module: str) -> str | None:
    """`h.7` of `transformer.h.7.mlp.gelu`."""
    match = re.match(r"(.*?\.\d+)(\.|$)", module)
    return short(match.group(1)) if match else None
