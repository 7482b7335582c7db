"""Which suspect explains a wrong step: it is put in place of the right computation, and the error must be gone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.parity.locate.observe import AlignedValue
from gptexport.parity.locate.replay import STEP_RATIO, TINY, Replay, StepError, rms_of
from gptexport.parity.locate.rotary import LAYOUTS, Rotary, find_rotary, turned
from gptexport.parity.locate.rotary_suspects import NAME as ROTATED_BEFORE
from gptexport.parity.locate.rotary_suspects import suspects_of_rotary
from gptexport.parity.locate.step import Step
from gptexport.parity.locate.suspect import Fit, Suspect
from gptexport.parity.locate.suspects import NARROW, gates, suspects_of
from gptexport.parity.locate.symptoms import difference, only_head, symptom
from gptexport.parity.names import short

STARTS = (1.0, 0.3, 3.0)  # of a fit
FIT_STEPS = 8
BLOCK_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a wrong step looks like. A claim was tried: with it, `left` × the noise is all that remains of the error."""

    claim: str | None
    left: float | None
    symptom: str | None


@dataclass(frozen=True)
class Stored:
    """What the graph holds for a module's own parameters, where that can be read."""

    weights: Mapping[str, torch.Tensor]
    shared: bool  # one tensor for the embedding and the head


def explain(replay: Replay, at: AlignedValue, error: StepError, stored: Stored) -> Explanation:
    """Try every suspect on a wrong step; the first that takes the error away is the claim."""
    step = Step(replay, at, error)
    where = symptom(step.actual, step.expected, error.noise_max, n_head=_heads(step))
    for claim, left in _tried(step, replay, stored):
        if left <= STEP_RATIO:
            return Explanation(claim=claim, left=left, symptom=where)
    return Explanation(claim=None, left=None, symptom=where)


def _tried(step: Step, replay: Replay, stored: Stored) -> Iterator[tuple[str, float]]:
    """Claims with what they leave of the error, the more particular first."""
    broken = [name for name, tensor in stored.weights.items() if not tensor.isfinite().all()]
    if broken:
        yield f"NaN or Inf in its {' and '.join(broken)}", 0.0
    if not step.actual.isfinite().all() or not step.expected.is_floating_point():
        yield from _of_integers(step)
        return
    calls = {call.function: call for call in step.calls}.values()
    found = [suspect for call in calls for suspect in suspects_of(call.function, call.args, call.kwargs)]
    found += gates([(call.function, call.args) for call in (*step.earlier, *step.calls)])
    rotary = find_rotary(replay.model, replay.ids)
    if rotary is not None and any(call.function == ROTATED_BEFORE for call in calls):
        found += suspects_of_rotary(rotary, F.scaled_dot_product_attention)
    for suspect in found:
        if isinstance(suspect, Suspect):
            yield suspect.claim, _left(step, suspect)
    if step.skipped is not None:
        yield "its input passed on unchanged: it is skipped", step.left(step.skipped)
    if rotary is not None:
        yield from _turned(step, rotary)
    yield from _earlier(step)
    module = replay.model.get_submodule(step.end.module)
    for claim, weights in _others(replay, step.end.module, module):
        yield claim, _left_with_weights(step, module, weights)
    heads = _heads(step)
    head = only_head(step.actual, step.expected, step.error.noise_max, heads) if heads else None
    for suspect in found:
        if isinstance(suspect, Fit) and suspect.head in (None, head):
            yield _fitted(step, suspect)
    yield from _narrowed(step)
    factor = float((step.actual * step.expected).sum() / step.expected.square().sum().clamp_min(TINY))
    yield f"the right values multiplied by {factor:.7g}", step.left(factor * step.expected)
    if stored.weights and step.end.side == "out":
        yield _stored_claim(replay, module, stored), _left_with_weights(step, module, stored.weights)


def _earlier(step: Step) -> Iterator[tuple[str, float]]:
    """Functions that the step's own do not name, such as the SiLU of a gate, called before the other factor was."""
    own = {call.function for call in step.calls}
    for call in {call.function: call for call in step.earlier if call.function not in own}.values():
        for suspect in suspects_of(call.function, call.args, call.kwargs):
            if isinstance(suspect, Suspect):
                yield suspect.claim, _left(step, suspect, earlier=True)


def _turned(step: Step, rotary: Rotary) -> Iterator[tuple[str, float]]:
    """Heads (B,n,T,D) that were turned by their positions too early: a norm with a gain does not allow it."""
    T, size = rotary.angles.shape[0], 2 * rotary.angles.shape[1]
    if step.expected.dim() == 4 and step.expected.shape[2] == T and step.expected.shape[3] >= size:
        for layout, way in product(LAYOUTS, (1, -1)):
            made = turned(step.expected, way * rotary.angles, layout)
            yield "turned by its position already here", step.left(made)


def _of_integers(step: Step) -> Iterator[tuple[str, float]]:
    """Positions, which a function makes or the graph counts."""
    if not step.actual.is_floating_point():
        for call in step.calls:
            for suspect in suspects_of(call.function, call.args, call.kwargs):
                if isinstance(suspect, Suspect):
                    yield suspect.claim, _left(step, suspect)


def _left(step: Step, suspect: Suspect, *, earlier: bool = False) -> float:
    try:
        return step.left(step.run((suspect.function, suspect.compute), earlier=earlier))
    except (RuntimeError, IndexError, TypeError):  # the suspect does not fit these shapes
        return float("inf")


def _left_with_weights(step: Step, module: nn.Module, weights: Mapping[str, torch.Tensor]) -> float:
    """What is left if the module had other weights."""
    kept = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    others = {name: weights[name] for name in kept if name in weights}
    if step.end.side != "out" or any(other.shape != kept[name].shape for name, other in others.items()):
        return float("inf")
    try:
        for name, other in others.items():
            module._parameters[name] = nn.Parameter(other.to(kept[name].dtype), requires_grad=False)
        return step.left(step.run(None))
    finally:
        module._parameters.update(kept)


def _others(replay: Replay, name: str, module: nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The weights of the same module in other blocks, and the embedding's for the head."""
    if not any(value is not None for value in module._parameters.values()):
        return
    for other, sibling in replay.model.named_modules():
        weights = {key: value for key, value in sibling._parameters.items() if value is not None}
        alike = BLOCK_NUMBER.search(name) and _without_block(other) == _without_block(name)
        beside = weights and type(sibling) is type(module) and other.rpartition(".")[0] == name.rpartition(".")[0]
        if other != name and (alike or beside):
            yield f"the weights of {short(other)}", weights
        elif isinstance(module, nn.Linear) and isinstance(sibling, nn.Embedding):
            yield f"a head tied to {short(other)}; the checkpoint's is not", weights


def _without_block(name: str) -> str:
    return BLOCK_NUMBER.sub(".*.", name, count=1)


def _fitted(step: Step, fit: Fit) -> tuple[str, float]:
    """Gauss-Newton in one unknown, from a few starts."""
    best = (float("inf"), 1.0)
    for x in STARTS:
        for _ in range(FIT_STEPS):
            made = step.run((fit.function, fit.compute(x)))
            left = step.left(made)
            best = min(best, (left, x))
            if best[0] <= STEP_RATIO / 4:
                break
            slope = (step.run((fit.function, fit.compute(x * (1 + 1e-5)))) - made) / (x * 1e-5)
            power = float(slope.square().sum())
            move = float((slope * (step.actual.to(slope.dtype) - made)).sum()) / power if power > 0 else 0.0
            if abs(move) <= 1e-9 * abs(x):
                break
            x += max(-0.5 * abs(x), min(move, 2 * abs(x)))
        if best[0] <= STEP_RATIO:
            break
    return fit.claim(best[1]), best[0]


def _narrowed(step: Step) -> Iterator[tuple[str, float]]:
    """Is it what a narrower dtype does? Then every value is one of that dtype, and as near as that comes."""
    if not step.expected.is_floating_point():
        return
    for name, dtype in NARROW.items():
        narrow = step.expected.to(dtype).to(torch.float64)
        error = rms_of(narrow - step.expected)
        if error <= step.error.noise_rms or not torch.equal(step.actual.to(dtype).to(step.actual.dtype), step.actual):
            continue
        left = rms_of(step.actual.to(torch.float64) - step.expected) / error
        yield f"computed or kept in {name}", left


def _stored_claim(replay: Replay, module: nn.Module, stored: Stored) -> str:
    own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    differing = "; ".join(
        f"{name}: {difference(stored.weights[name], own[name])}"
        for name in own
        if name in stored.weights and not torch.equal(stored.weights[name].double(), own[name].double())
    )
    if isinstance(module, nn.Linear) and not stored.shared:
        for name, other in replay.model.named_modules():
            if isinstance(other, nn.Embedding) and other.weight is module.weight:
                return f"a head of its own, not tied to {short(name)} ({differing})"
    return f"other weights than the checkpoint's ({differing})"


def _heads(step: Step) -> int | None:
    for call in step.calls:
        if call.function == "scaled_dot_product_attention" and call.args[0].dim() == 4:
            return int(call.args[0].shape[1])
    return None
