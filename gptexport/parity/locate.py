"""From a failed verdict to the first wrong step, and what it looks like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn as nn

from gptexport.parity.divergence import PlaceError, Walk, judge_places, line_up, walk
from gptexport.parity.experiments import Stored, explain
from gptexport.parity.reference import eager_in
from gptexport.parity.replay import Place
from gptexport.parity.stored import StoredWeights
from gptexport.parity.tokens import Ids, Shape

WALK_BYTES = 512 << 20  # of hidden states held at once
FEW_POSITIONS = 16  # fewer show neither a mask nor a position


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first step of the graph that is wrong on its own inputs."""

    place: PlaceError
    claim: str | None  # what it looks like: with that in its place, the error is `left` × the noise
    left: float | None
    symptom: str | None  # where in the tensor it is wrong
    also: tuple[str, ...]  # the other steps that are wrong on their own inputs
    shape: Shape  # of the ids that showed it

    def sentence(self) -> str:
        """`h.7.mlp.gelu (Gelu): error ×250 its noise; looks like GELU tanh for erf`."""
        operators = f" ({', '.join(self.place.operators[:3])})" if self.place.operators else ""
        amount = f"error ×{self.place.ratio:,.3g} its noise" if np.isfinite(self.place.ratio) else "not what it must be"
        if self.place.relative_rms == np.inf:
            amount = "NaN or Inf"
        parts = [f"{self.place.name}{operators}: {amount}"]
        if self.symptom:
            parts.append(self.symptom)
        if self.claim:
            parts.append(f"looks like {self.claim}")
        return "; ".join(parts)


def find_divergence(
    model: nn.Module,
    graph: Path,
    ids: Ids,
    *,
    dtype: str,
    device: str = "cpu",
    optimize: bool = True,
    progress: Callable[[str], None] = lambda _step: None,
) -> tuple[tuple[PlaceError, ...], Divergence | None]:
    """Judge every step of the graph alone, and try the usual suspects on the first that is wrong.

    Returns: every step that could be found in the graph, and None where all of them are right.
    """
    eager = eager_in(model, dtype)
    plan = line_up(model, graph, ids)
    all_errors: list[PlaceError] = []
    wrong: list[tuple[Walk, Place, PlaceError]] = []
    for group in _groups(plan.places):
        progress(f"comparing {len(group)} hidden states, each step on its own inputs")
        walked = walk(model, graph, ids, plan, group, dtype=dtype, device=device, optimize=optimize)
        errors = judge_places(walked, eager)
        pairs = list(zip(walked.itinerary.places, errors, strict=True))
        if all_errors:
            pairs = pairs[1:]  # it ends the group before; here it was only what to go on from
        all_errors += [error for _, error in pairs]
        if not wrong:
            wrong = [(walked, place, error) for place, error in pairs if not error.right]
    if not wrong:
        return tuple(all_errors), None
    walked, place, error = wrong[0]
    progress(f"{error.name} is the first that is wrong: trying the usual suspects")
    explanation = explain(walked, place, error, _stored(graph, model, place))
    return tuple(all_errors), Divergence(
        place=error,
        claim=explanation.claim,
        left=explanation.left,
        symptom=explanation.symptom,
        also=tuple(e.name for e in all_errors if not e.right and e is not error),
        shape=(ids.shape[0], ids.shape[1]),
    )


def choose_shape(failed: Sequence[Shape]) -> Shape:
    """The cheapest shape that has enough positions to show anything; the largest where none has."""
    enough = [shape for shape in failed if shape[0] * shape[1] >= FEW_POSITIONS and shape[1] > 2]
    return min(enough, key=_size) if enough else max(failed, key=_size)


def _size(shape: Shape) -> int:
    return shape[0] * shape[1]


def _groups(places: list[Place]) -> Iterator[list[Place]]:
    """Places that fit in memory together, cut where a block ends; each group begins where the last ended."""
    group: list[Place] = []
    held = 0
    for place in places:
        group.append(place)
        held += 8 * int(np.prod(place.shape))  # the graph's and eager's
        if held > WALK_BYTES and place.side == "out" and re.search(r"\.\d+$", place.module):
            yield group
            group, held = [place], 0
    if group:
        yield group


def _stored(graph: Path, model: nn.Module, place: Place) -> Stored:
    """What the graph holds for the module's own parameters."""
    held = StoredWeights(model, graph)
    module = model.get_submodule(place.module)
    is_embedding = isinstance(module, nn.Embedding)
    found, shared = {}, False
    for name, parameter in module._parameters.items():
        for stored, tensor in held.of(parameter) if parameter is not None else ():
            readers = {node.op_type.startswith("Gather") for node in held.index.readers({stored})}
            if is_embedding in readers:
                found[name] = tensor
                shared |= len(readers) > 1
    return Stored(found, shared)
