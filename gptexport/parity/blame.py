"""Which step on the way from the checkpoint to the session broke the model: each is run, the first wrong one named."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch.nn as nn
from gptexport_runtime import GPTExportError, Session
from gptexport_runtime.contract import GRAPH_LOGITS, LOGITS

from gptexport.checkpoints import Checkpoint
from gptexport.export import export_onnx
from gptexport.parity.expose import run_exposed
from gptexport.parity.gates import EPS, GATES
from gptexport.parity.metrics import Logits
from gptexport.parity.reference import eager_in, run, run_reference
from gptexport.parity.tokens import Ids


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step on the way. `noise_ratio` is None where it could not be run; `why` says what it was or why not."""

    name: str
    noise_ratio: float | None
    right: bool | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The stages in order, and the first that is wrong."""

    stages: tuple[Stage, ...]
    culprit: str | None
    sentence: str


FRESH_EXPORT_BYTES = 2 << 30  # of weights; an export needs about 2.5 times as much
EXPORT, GRAPH, SESSION = "portable export", "this graph, as it is written", "this graph, as the session runs it"


def find_blame(
    session: Session,
    checkpoint: Checkpoint,
    graph: Path,
    ids: Ids,
    *,
    dtype: str,
    progress: Callable[[str], None] = lambda _step: None,
) -> Blame:
    """Compare eager, a fresh portable export, the graph as written and the session, all on the same ids."""
    expected = run_reference(checkpoint.model, ids)
    noise = _rms(run(eager_in(checkpoint.model, dtype), ids), expected)
    noise = max(noise, EPS[dtype] / 2 * _rms(expected, np.zeros(1)))

    def stage(name: str, compute: Callable[[], Logits]) -> Stage:
        progress(f"whom to blame: {name}")
        try:
            ratio = _rms(compute(), expected) / noise
        except Exception as error:
            return Stage(name=name, noise_ratio=None, right=None, why=str(error).splitlines()[0][:300])
        return Stage(name=name, noise_ratio=ratio, right=bool(ratio <= (GATES[dtype].noise_ratio or 2.0)))

    stages = (
        stage(EXPORT, lambda: _run_fresh_export(checkpoint, ids, dtype)),
        stage(GRAPH, lambda: run_exposed(graph, ids, [], device=session.device, optimize=False)[LOGITS]),
        stage(SESSION, lambda: session.logits(ids)),
    )
    culprit = next((s.name for s in stages if s.right is False), None)
    return Blame(stages=stages, culprit=culprit, sentence=_sentence(culprit, session, checkpoint))


def _run_fresh_export(checkpoint: Checkpoint, ids: Ids, dtype: str) -> Logits:
    with tempfile.TemporaryDirectory() as folder:
        return run_exposed(fresh_export(checkpoint, Path(folder), dtype), ids, [])[LOGITS]


def fresh_export(checkpoint: Checkpoint, folder: Path, dtype: str) -> Path:
    """The portable logits graph of the checkpoint, exported now.

    Raises:
        GPTExportError: that would take more memory than is left beside the session.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in checkpoint.model.parameters())
    if size > FRESH_EXPORT_BYTES:
        raise GPTExportError(f"{size / 1e9:.1f} GB of weights are not exported again beside an open session")
    model: nn.Module = checkpoint.model if dtype == "float32" else copy.deepcopy(checkpoint.model)
    made = export_onnx(replace(checkpoint, model=model), folder / "fresh", dtype=dtype)  # type: ignore[arg-type]
    return made.path / made.manifest.graphs[GRAPH_LOGITS].file


def _sentence(culprit: str | None, session: Session, checkpoint: Checkpoint) -> str:
    if culprit is None:
        return "none is wrong on these ids alone: the fault depends on the ids or the shape"
    if culprit == SESSION:
        return "the backend: the graph as it is written is right, and wrong once ONNX Runtime has optimized it"
    if culprit == EXPORT:
        return "the export: a fresh portable export of this checkpoint is wrong too. Please report it"
    manifest = session.manifest
    source = manifest.source if manifest else {}
    if source.get("sha256") not in (None, checkpoint.sha256):
        return "the bundle was exported from another file than this checkpoint: their hashes differ"
    exported, asked = dict(source.get("options") or {}), dict(checkpoint.options)
    other = [name for name in sorted({*exported, *asked}) if exported.get(name) != asked.get(name)]
    if other:
        told = ", ".join(f"{name} {exported.get(name)} then, {asked.get(name)} now" for name in other)
        return f"the bundle was exported with other options ({told}); a fresh export is right"
    target = f"target {manifest.target!r}, or " if manifest and manifest.target != "portable" else ""
    return f"what was done to the graph after the portable export, which is right: {target}a change of the file"


def _rms(a: Logits, b: Logits) -> float:
    return float(np.sqrt(np.square(a.astype(np.float64) - b).mean()))
