"""What to say besides a verdict: the first wrong step, what it looks like, and what caused it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptexport.artifacts import Artifact, Stage
from gptexport.checkpoints import Checkpoint
from gptexport.parity.guard import noted
from gptexport.parity.locate.cause import Attribution, find_cause, fresh_exports
from gptexport.parity.locate.replay import StepError
from gptexport.parity.locate.search import WrongStep, find_wrong_step
from gptexport.parity.measure.invariances import Invariant
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.measure.shapes import choose_shape
from gptexport.parity.measure.special_ids import ids_of_text, special_rows
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
    notes: tuple[str, ...] = ()  # what could not be looked for, and why

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
    What fails in here is a note; the rest is said nevertheless.

    Args:
        causes: on a failure run the other stages too, which exports the checkpoint afresh.
    """
    if not verdict.shapes or _is_another_head(verdict):
        return Diagnosis()
    notes: list[str] = []
    source = TokenSource(checkpoint.predicted_ids, tokens)
    ids = _ids(source, checkpoint, artifact, verdict)
    search = _Search(session, checkpoint, artifact, source, ids, progress)
    attribution, found = None, Diagnosis()
    with fresh_exports(checkpoint, artifact.precision) as fresh:
        if causes and not verdict.passed:
            with noted("the cause could not be looked for", notes):
                attribution = find_cause(
                    session, checkpoint, artifact, ids, fresh, float64=not verdict.doubtful, progress=progress
                )
                attribution = _with_weights(attribution, artifact, verdict)
        if artifact.graph is not None and _has_steps(artifact, verdict, attribution):
            with noted("its steps could not be compared one by one", notes):
                right = artifact.graph if verdict.passed else fresh() if _export_is_right(attribution) else None
                found = search.steps(artifact.graph, right, once=verdict.passed)
    return replace(found, attribution=attribution, notes=tuple(notes))


def _is_another_head(verdict: Verdict) -> bool:
    """Quantized logits are right, and another graph of the bundle is not: what made the logits is not the cause."""
    wrong = [each for each in verdict.invariances if not each.passed]
    rest = all(row.passed for row in verdict.shapes) and all(each.passed for each in verdict.statistics)
    return verdict.gates.statistical and rest and bool(wrong) and all(each.kind is Invariant.HEAD for each in wrong)


def _has_steps(artifact: Artifact, verdict: Verdict, attribution: Attribution | None) -> bool:
    """Whether the graph's steps can be judged, and are what the session runs or what made it wrong."""
    if verdict.gates.statistical or verdict.doubtful:  # quantized steps differ by design
        return False
    wrong_source = attribution is not None and attribution.cause is Stage.SOURCE_GRAPH
    return Stage.GRAPH in artifact.stages or wrong_source


def _export_is_right(attribution: Attribution | None) -> bool:
    stages = attribution.stages if attribution is not None else ()
    return any(result.stage is Stage.EXPORT and result.right is True for result in stages)


def _with_weights(attribution: Attribution, artifact: Artifact, verdict: Verdict) -> Attribution:
    """Weights that are not the checkpoint's are in the graph, whatever the logits say."""
    if attribution.cause is not None or all(i.passed for i in verdict.invariances if i.kind is Invariant.WEIGHT):
        return attribution
    graph = next(stage for stage in artifact.stages if stage in (Stage.GRAPH, Stage.SOURCE_GRAPH))
    return replace(attribution, cause=graph, sentence=f"{graph.value}: {OTHER_WEIGHTS}")


@dataclass(frozen=True)
class _Search:
    """For the first wrong step."""

    session: Session
    checkpoint: Checkpoint
    artifact: Artifact
    source: TokenSource
    ids: Ids
    progress: Callable[[str], None]

    def steps(self, graph: Path, right: Path | None, *, once: bool) -> Diagnosis:
        """With other ids until one batch shows it, or `once`; each has the row of an embedding that differs most."""
        model, precision = self.checkpoint.model, self.artifact.precision
        runs_here = Stage.GRAPH in self.artifact.stages  # an engine's graph is run on the CPU
        rows = worst_rows(model, graph, precision)
        steps: tuple[StepError, ...] = ()
        wrong = None
        for seed in range(TRIES):
            ids = self.ids.copy() if seed == 0 else self.source.batch(self.ids.shape, seed)
            for row in rows.values():
                if row.rows == self.checkpoint.vocab_size and runs_here:  # a token that the grid may never have used
                    ids.flat[0] = row.worst
            steps, wrong = find_wrong_step(
                model,
                graph,
                ids,
                precision=precision,
                device=self.session.device if runs_here else "cpu",
                right=right,
                progress=self.progress,
            )
            if wrong is not None or once:
                break
        return Diagnosis(steps=steps, wrong_step=wrong)


def _ids(source: TokenSource, checkpoint: Checkpoint, artifact: Artifact, verdict: Verdict) -> Ids:
    """Of a shape that failed; else of those that passed, the longest where something that must not change did."""
    failed = [row.shape for row in verdict.shapes if not row.passed]
    grid = [row.shape for row in verdict.shapes]
    B, T = choose_shape(failed or grid)
    if not failed and verdict.special is not None and not verdict.special.passed:
        rows = special_rows(source, ids_of_text(checkpoint), T)
        return rows if artifact.accepts(len(rows), T) else rows[:B]
    if failed or verdict.passed:
        return source.batch((B, T), 0)
    return source.batch(max(grid, key=lambda shape: (shape[1], -shape[0])), 0)
