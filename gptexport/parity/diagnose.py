"""What to say besides a verdict: the first wrong step, what it looks like, and whom to blame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptexport.checkpoints import Checkpoint
from gptexport.parity.blame import GRAPH, ORIGIN, Blame, find_blame
from gptexport.parity.divergence import PlaceError
from gptexport.parity.locate import Divergence, choose_shape, find_divergence
from gptexport.parity.stored import worst_rows
from gptexport.parity.tokens import Ids, Shape, TokenSource
from gptexport.parity.verdict import Verdict, jsonable
from gptexport_runtime import Session

TRIES = 3  # batches of ids, until one shows the fault
OTHER_WEIGHTS = "it holds other weights than the checkpoint, by less than these logits show"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """`steps` is empty and the others None where that could not be found, or was not looked for."""

    steps: tuple[PlaceError, ...] = ()
    divergence: Divergence | None = None
    blame: Blame | None = None

    def to_dict(self) -> dict[str, Any]:
        """For --json: without the steps, which are many."""
        found = None
        if self.divergence is not None:
            found = {**asdict(self.divergence), "sentence": self.divergence.sentence()}
        blame = asdict(self.blame) if self.blame is not None else None
        return jsonable({"divergence": found, "blame": blame})  # type: ignore[no-any-return]


def diagnose(
    session: Session,
    checkpoint: Checkpoint,
    graph: Path | None,
    verdict: Verdict,
    *,
    tokens: Ids | None = None,
    blame: bool = True,
    progress: Callable[[str], None] = lambda _step: None,
) -> Diagnosis:
    """Judge each step of the graph alone: where a failure comes from, and what a pass may hide.

    Nobody can look into an engine: there only whom to blame is found, and the wrong step of the graph where that is it.

    Args:
        graph: the .onnx that the session runs; of an engine the one it was built from, or None.
        blame: on a failure run the other stages too, which exports the checkpoint afresh.
    """
    if not verdict.shapes:
        return Diagnosis()
    shape = _shape(verdict)
    ids = TokenSource(checkpoint.predicted_ids, tokens).batch(shape, 0)
    if session.engine is not None:
        return _diagnose_engine(session, checkpoint, graph, verdict, ids, blame=blame, progress=progress)
    assert graph is not None, "only an engine may be without its graph"
    steps: tuple[PlaceError, ...] = ()
    divergence = None
    if not verdict.gates.statistical:  # quantized steps differ by design
        rows = worst_rows(checkpoint.model, graph, verdict.dtype)
        for seed in range(TRIES):
            batch = TokenSource(checkpoint.predicted_ids, tokens).batch(shape, seed)
            for row in rows.values():
                if row.rows == checkpoint.vocab_size:  # a token that the grid may never have used
                    batch.flat[0] = row.worst
            steps, divergence = find_divergence(
                checkpoint.model, graph, batch, dtype=verdict.dtype, device=session.device, progress=progress
            )
            if divergence is not None or verdict.passed:
                break
    if verdict.passed or not blame:
        return Diagnosis(steps=steps, divergence=divergence)
    found = find_blame(session, checkpoint, graph, ids, dtype=verdict.dtype, progress=progress)
    if found.culprit is None and any(i.stored and not i.passed for i in verdict.invariances):
        found = replace(found, culprit=GRAPH, sentence=f"{GRAPH}: {OTHER_WEIGHTS}")
    return Diagnosis(steps=steps, divergence=divergence, blame=found)


def _diagnose_engine(
    session: Session,
    checkpoint: Checkpoint,
    graph: Path | None,
    verdict: Verdict,
    ids: Ids,
    *,
    blame: bool,
    progress: Callable[[str], None],
) -> Diagnosis:
    if verdict.passed or not blame:
        return Diagnosis()
    found = find_blame(session, checkpoint, graph, ids, dtype=verdict.dtype, progress=progress)
    if graph is None or found.culprit != ORIGIN:
        return Diagnosis(blame=found)
    steps, divergence = find_divergence(checkpoint.model, graph, ids, dtype=verdict.dtype, progress=progress)
    return Diagnosis(steps=steps, divergence=divergence, blame=found)


def _shape(verdict: Verdict) -> Shape:
    """Of those that failed; else of those that passed, the longest where something that must not change did."""
    failed = [row.shape for row in verdict.shapes if not row.passed]
    grid = [row.shape for row in verdict.shapes]
    if failed or verdict.passed:
        return choose_shape(failed or grid)
    return max(grid, key=lambda shape: (shape[1], -shape[0]))
