"""The first step of a graph that is wrong on its own inputs, and what it looks like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn as nn

from gptexport.parity.guard import noted
from gptexport.parity.locate.experiments import Explanation, Stored, explain
from gptexport.parity.locate.observe import AlignedValue
from gptexport.parity.locate.proof import prove_boundaries
from gptexport.parity.locate.replay import Replay, StepError, align_model, judge_steps, start_replay
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.measure.reference import eager_in
from gptexport.parity.measure.shapes import Shape
from gptexport.parity.measure.stored import StoredWeights
from gptexport.precision import Precision

GROUP_BYTES = 512 << 20  # of hidden states held at once


@dataclass(frozen=True, kw_only=True)
class WrongStep:
    """The first step of the graph that is wrong on its own inputs."""

    error: StepError
    claim: str | None  # what it looks like: with that in its place, the error is `left` × the noise
    left: float | None
    symptom: str | None  # where in the tensor it is wrong
    untried: str | None  # why no claim was tried, where that ended in an error
    also: tuple[str, ...]  # the other steps that are wrong on their own inputs
    shape: Shape  # of the ids that showed it

    def sentence(self) -> str:
        """`h.7.mlp.gelu (Gelu): error ×250 its noise; looks like GELU tanh for erf`."""
        operators = f" ({', '.join(self.error.operators[:3])})" if self.error.operators else ""
        amount = f"error ×{self.error.ratio:,.3g} its noise" if np.isfinite(self.error.ratio) else "not what it must be"
        if self.error.relative_rms == np.inf:
            amount = "NaN or Inf"
        parts = [f"{self.error.name}{operators}: {amount}"]
        if self.symptom:
            parts.append(self.symptom)
        if self.claim:
            parts.append(f"looks like {self.claim}")
        return "; ".join(parts)


def find_wrong_step(
    model: nn.Module,
    graph: Path,
    ids: Ids,
    *,
    precision: Precision,
    device: str = "cpu",
    optimize: bool = True,
    right: Path | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> tuple[tuple[StepError, ...], WrongStep | None]:
    """Judge every step of the graph alone, and try the usual suspects on the first that is wrong.

    Args:
        right: a graph of the model that is right, `graph` itself or another, on which it is proved that the values are
            those of the modules; without it only modules of PyTorch's own are looked at.

    Returns: every step that could be found in the graph, and None where all of them are right.
    """
    eager = eager_in(model, precision)
    proven = set()
    if right is not None:
        where = device if right == graph else "cpu"
        proven = prove_boundaries(model, right, ids, precision, eager=eager, device=where)
    alignment = align_model(model, graph, ids, proven)
    all_errors: list[StepError] = []
    wrong: list[tuple[Replay, AlignedValue, StepError]] = []
    for group in _groups(alignment.aligned):
        progress(f"comparing {len(group)} hidden states, each step on its own inputs")
        replay = start_replay(
            model, graph, ids, alignment, group, precision=precision, device=device, optimize=optimize
        )
        pairs = list(zip(replay.alignment.aligned, judge_steps(replay, eager), strict=True))
        if all_errors:
            pairs = pairs[1:]  # it ends the group before; here it was only what to go on from
        all_errors += [error for _, error in pairs]
        if not wrong:
            wrong = [(replay, found, error) for found, error in pairs if not error.right]
    if not wrong:
        return tuple(all_errors), None
    replay, found, error = wrong[0]
    progress(f"{error.name} is the first that is wrong: trying the usual suspects")
    explanation = Explanation(claim=None, left=None, symptom=None)
    failed: list[str] = []
    with noted("nothing was tried in its place", failed):
        explanation = explain(replay, found, error, _stored(graph, model, found))
    return tuple(all_errors), WrongStep(
        error=error,
        claim=explanation.claim,
        left=explanation.left,
        symptom=explanation.symptom,
        untried=failed[0] if failed else None,
        also=tuple(e.name for e in all_errors if not e.right and e is not error),
        shape=(ids.shape[0], ids.shape[1]),
    )


def _groups(aligned: list[AlignedValue]) -> Iterator[list[AlignedValue]]:
    """Values that fit in memory together, cut where a block ends; each group begins where the last ended."""
    group: list[AlignedValue] = []
    held = 0
    for found in aligned:
        group.append(found)
        held += 8 * int(np.prod(found.shape))  # the graph's and eager's
        if held > GROUP_BYTES and found.side == "out" and re.search(r"\.\d+$", found.module):
            yield group
            group, held = [found], 0
    if group:
        yield group


def _stored(graph: Path, model: nn.Module, at: AlignedValue) -> Stored:
    """What the graph holds for the module's own parameters."""
    held = StoredWeights(model, graph)
    module = model.get_submodule(at.module)
    is_embedding = isinstance(module, nn.Embedding)
    found, shared = {}, False
    for name, parameter in module._parameters.items():
        for stored, tensor in held.of(parameter) if parameter is not None else ():
            readers = {node.op_type.startswith("Gather") for node in held.index.readers({stored})}
            if is_embedding in readers:
                found[name] = tensor
                shared |= len(readers) > 1
    return Stored(found, shared)
