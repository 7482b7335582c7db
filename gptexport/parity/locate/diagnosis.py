"""What to say besides a verdict: the first wrong step, what it looks like, and what caused it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptexport.artifacts import Artifact, Stage
from gptexport.checkpoints import Checkpoint
from gptexport.parity.locate.cause import Attribution, find_cause
from gptexport.parity.locate.replay import StepError
from gptexport.parity.locate.search import WrongStep, choose_shape, find_wrong_step
from gptexport.parity.measure.invariances import Invariant
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.measure.shapes import Shape
from gptexport.parity.measure.tokens import TokenSource
from gptexport.parity.measure.weights import worst_rows
from gptexport.parity.verdict.judge import Verdict, jsonable
from gptexport_runtime import Session

TRIES = 3  # batches of ids, until one shows the fault
OTHER_WEIGHTS = "it holds other weights than the checkpoint, by less than these logits show"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """`steps` is empty and the others None where that could not be found, or was not looked for."""

    steps: tuple[StepError, ...] = ()
    wrong_step: WrongStep | None = None
    attribution: Attribution | None = None

    def to_dict(self) -> dict[str, Any]:
        """For --json, under the names of its schema; without the steps, which are many."""
        divergence = blame = None
        if (wrong := self.wrong_step) is not None:
            divergence = asdict(wrong)
            divergence |= {"place": divergence.pop("error"), "sentence": wrong.sentence()}
        if (found := self.attribution) is not None:
            culprit = next((result.name for result in found.stages if result.stage is found.cause), None)
            stages = [{**asdict(result), "stage": result.stage.name.lower()} for result in found.stages]
            cause = found.cause.name.lower() if found.cause else None
            blame = {"stages": stages, "cause": cause, "culprit": culprit, "sentence": found.sentence}
        return jsonable({"divergence": divergence, "blame": blame})  # type: ignore[no-any-return]


def diagnose(
    session: Session,
    checkpoint: Checkpoint,
    artifact: Artifact,
    verdict: Verdict,
    *,
    tokens: Ids | None = None,
    causes: bool = True,
    progress: Callable[[str], None] = lambda _step: None,
) -> Diagnosis:
    """Judge each step of the graph alone: where a failure comes from, and what a pass may hide.

    The inside of an engine cannot be seen: there only the cause is found, and if that is the graph, its wrong step.

    Args:
        causes: on a failure run the other stages too, which exports the checkpoint afresh.
    """
    if not verdict.shapes:
        return Diagnosis()
    shape = _shape(verdict)
    ids = TokenSource(checkpoint.predicted_ids, tokens).batch(shape, 0)
    runs_graph = Stage.GRAPH in artifact.stages
    found = Diagnosis()
    if runs_graph and artifact.graph is not None and not verdict.gates.statistical:  # quantized steps differ by design
        found = _find_wrong_step(session, checkpoint, artifact, artifact.graph, verdict, shape, tokens, progress)
    if verdict.passed or not causes:
        return found
    attribution = find_cause(session, checkpoint, artifact, ids, progress=progress)
    if attribution.cause is None and any(i.kind is Invariant.WEIGHT and not i.passed for i in verdict.invariances):
        graph = Stage.GRAPH if runs_graph else Stage.SOURCE_GRAPH
        attribution = replace(attribution, cause=graph, sentence=f"{graph.value}: {OTHER_WEIGHTS}")
    if attribution.cause is Stage.SOURCE_GRAPH and artifact.graph is not None:
        steps, wrong = find_wrong_step(
            checkpoint.model, artifact.graph, ids, precision=artifact.precision, progress=progress
        )
        found = Diagnosis(steps=steps, wrong_step=wrong)
    return replace(found, attribution=attribution)


def _find_wrong_step(
    session: Session,
    checkpoint: Checkpoint,
    artifact: Artifact,
    graph: Path,
    verdict: Verdict,
    shape: Shape,
    tokens: Ids | None,
    progress: Callable[[str], None],
) -> Diagnosis:
    """With other ids until one batch shows it; each has the row of an embedding that differs most."""
    rows = worst_rows(checkpoint.model, graph, artifact.precision)
    steps: tuple[StepError, ...] = ()
    wrong = None
    for seed in range(TRIES):
        ids = TokenSource(checkpoint.predicted_ids, tokens).batch(shape, seed)
        for row in rows.values():
            if row.rows == checkpoint.vocab_size:  # a token that the grid may never have used
                ids.flat[0] = row.worst
        steps, wrong = find_wrong_step(
            checkpoint.model, graph, ids, precision=artifact.precision, device=session.device, progress=progress
        )
        if wrong is not None or verdict.passed:
            break
    return Diagnosis(steps=steps, wrong_step=wrong)


def _shape(verdict: Verdict) -> Shape:
    """The shape to look at: of those that failed, or else the longest where something that must not change did."""
    failed = [row.shape for row in verdict.shapes if not row.passed]
    grid = [row.shape for row in verdict.shapes]
    if failed or verdict.passed:
        return choose_shape(failed or grid)
    return max(grid, key=lambda shape: (shape[1], -shape[0]))
