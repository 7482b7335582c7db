"""What to say of a failed verdict: the first wrong step, what it looks like, and whom to blame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptexport_runtime import Session

from gptexport.checkpoints import Checkpoint
from gptexport.parity.blame import Blame, find_blame
from gptexport.parity.locate import Divergence, choose_shape, find_divergence
from gptexport.parity.tokens import Ids, TokenSource
from gptexport.parity.verdict import Verdict, jsonable

TRIES = 3  # batches of ids, until one shows the fault


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Each is None where it could not be found, or was not looked for."""

    divergence: Divergence | None
    blame: Blame | None

    def to_dict(self) -> dict[str, Any]:
        """For --json: without the steps that are right."""
        data: dict[str, Any] = {"divergence": None, "blame": None}
        if self.divergence is not None:
            data["divergence"] = {**asdict(self.divergence), "sentence": self.divergence.sentence()}
            del data["divergence"]["places"]
        if self.blame is not None:
            data["blame"] = asdict(self.blame)
        return jsonable(data)  # type: ignore[no-any-return]


def diagnose(
    session: Session,
    checkpoint: Checkpoint,
    graph: Path,
    verdict: Verdict,
    *,
    tokens: Ids | None = None,
    blame: bool = True,
    progress: Callable[[str], None] = lambda _step: None,
) -> Diagnosis:
    """Look into a verdict that failed at some shape.

    Args:
        graph: the .onnx that the session runs.
        blame: run the other stages too, which exports the checkpoint afresh.
    """
    failed = [row.shape for row in verdict.shapes if not row.passed]
    if verdict.gates.statistical:  # no shape fails alone, and quantized steps all differ by design
        failed = [row.shape for row in verdict.shapes]
    if not failed:
        return Diagnosis(divergence=None, blame=None)
    source = TokenSource(checkpoint.vocab_size, tokens)
    shape = choose_shape(failed)
    divergence = None
    if not verdict.gates.statistical:
        for seed in range(TRIES):
            ids = source.batch(shape, seed)
            divergence = find_divergence(
                checkpoint.model, graph, ids, dtype=verdict.dtype, device=session.device, progress=progress
            )
            if divergence is not None:
                break
    ids = source.batch(shape, 0)
    found = find_blame(session, checkpoint, graph, ids, dtype=verdict.dtype, progress=progress) if blame else None
    return Diagnosis(divergence=divergence, blame=found)
