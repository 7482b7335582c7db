"""What caused a failure: each stage from the checkpoint to the session is run, and the first wrong one named."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from gptexport.artifacts import Artifact, Stage
from gptexport.checkpoints import Checkpoint
from gptexport.engine.prepare import prepare_graph
from gptexport.export import export_onnx
from gptexport.parity.locate.intermediate import run_graph
from gptexport.parity.measure.float64 import Perturbed
from gptexport.parity.measure.metrics import Ids, Logits, same_kind
from gptexport.parity.measure.reference import eager_in, run_eager, run_reference
from gptexport.precision import Precision
from gptexport_runtime import GPTExportError, Session
from gptexport_runtime.contract.heads import LOGITS

Compute = Callable[[], Logits]

FRESH_EXPORT_BYTES = 2 << 30  # of weights; an export needs about 2.5 times as much
IN_FLOAT32 = ", in float32"  # with the weights as they are stored, where ONNX Runtime's CPU does not compute in theirs


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One stage. `noise_ratio` and `right` are None where it could not be run; `why` then says why not."""

    stage: Stage
    name: str  # of the stage, with what it was run in
    noise_ratio: float | None
    right: bool | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """The stages in order, and the first that is wrong: the cause."""

    stages: tuple[StageResult, ...]
    cause: Stage | None
    sentence: str


def find_cause(
    session: Session,
    checkpoint: Checkpoint,
    artifact: Artifact,
    ids: Ids,
    fresh: Callable[[], Path],
    *,
    float64: bool = True,
    progress: Callable[[str], None] = lambda _step: None,
) -> Attribution:
    """Compare eager, a fresh portable export and each stage of the artifact, all on the same ids.

    Args:
        fresh: gives the graph of a portable export made now.
        float64: the model in float64 is a reference to believe; else eager is.
    """
    precision = artifact.precision
    eager_model = eager_in(checkpoint.model, precision)
    eager = run_eager(eager_model, ids)
    expected = run_reference(checkpoint.model, ids) if float64 else None
    if expected is None:
        expected = eager
        with Perturbed(precision.eps, seed=0):
            eager = run_eager(eager_model, ids)
    scale = _rms(expected)
    error = _error(eager, expected)
    noise = max(error, precision.eps / 2 * scale)
    stages = [_eager(error / scale if scale else 0.0, precision)]
    for stage, (compute, ran_in) in _computations(session, artifact, ids, fresh).items():
        name = stage.value + ran_in
        progress(f"looking for the cause: {name}")
        try:
            ratio = _error(compute(), expected) / noise
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:300]
            stages.append(StageResult(stage=stage, name=name, noise_ratio=None, right=None, why=why))
        else:
            right = bool(ratio <= (precision.gates.noise_ratio or 2.0))
            stages.append(StageResult(stage=stage, name=name, noise_ratio=ratio, right=right))
    cause = next((result.stage for result in stages if result.right is False), None)
    return Attribution(stages=tuple(stages), cause=cause, sentence=_sentence(cause, stages, artifact, checkpoint))


def _eager(relative: float, precision: Precision) -> StageResult:
    """Eager is the yardstick, unless it is none: in float16 logits may be far off, or not finite."""
    allowed = precision.gates.relative_rms or np.inf
    name = f"{Stage.EAGER.value} in {precision.dtype}"
    if relative <= allowed:
        return StageResult(stage=Stage.EAGER, name=name, noise_ratio=1.0, right=True)
    why = f"relative RMS error {relative:.1e}; at most {allowed:.0e}"
    return StageResult(stage=Stage.EAGER, name=name, noise_ratio=None, right=False, why=why)


def _computations(
    session: Session, artifact: Artifact, ids: Ids, fresh: Callable[[], Path]
) -> dict[Stage, tuple[Compute, str]]:
    """How to run each stage after eager, and what its name has to add."""
    precision = artifact.precision
    here, there = ("" if precision.runs_on(device) else IN_FLOAT32 for device in ("cpu", session.device))

    def graph(device: str, *, prepared: bool = False) -> Logits:
        if artifact.graph is None:
            raise GPTExportError("not found beside the engine; say where it is with --graph")
        model = onnx.load(str(artifact.graph), load_external_data=False)
        model = prepare_graph(model)[0] if prepared else model
        return run_graph(artifact.graph, ids, precision, device=device, model=model)

    known: dict[Stage, tuple[Compute, str]] = {
        Stage.EXPORT: (lambda: run_graph(fresh(), ids, precision), here),
        Stage.GRAPH: (lambda: graph(session.device), there),
        Stage.ONNX_RUNTIME: (lambda: session.logits(ids), ""),
        Stage.SOURCE_GRAPH: (lambda: graph("cpu"), here),
        Stage.PREPARED_GRAPH: (lambda: graph("cpu", prepared=True), here),
        Stage.ENGINE: (lambda: session.logits(ids), ""),
    }
    return {stage: known[stage] for stage in (Stage.EXPORT, *artifact.stages)}


@contextmanager
def fresh_exports(checkpoint: Checkpoint, precision: Precision) -> Iterator[Callable[[], Path]]:
    """What exports the checkpoint when it is called first, and keeps the file as long as this is open."""
    with tempfile.TemporaryDirectory() as folder:
        yield cache(lambda: fresh_export(checkpoint, Path(folder), precision))


def fresh_export(checkpoint: Checkpoint, folder: Path, precision: Precision) -> Path:
    """The portable logits graph of the checkpoint, exported now.

    Raises:
        GPTExportError: that would take more memory than is left beside the session.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in checkpoint.model.parameters())
    if size > FRESH_EXPORT_BYTES:
        raise GPTExportError(f"{size / 1e9:.1f} GB of weights are not exported again beside an open session")
    made = export_onnx(checkpoint, folder / "fresh", dtype=precision.dtype)
    return made.path / made.manifest.graphs[LOGITS.name].file


def _sentence(cause: Stage | None, stages: list[StageResult], artifact: Artifact, checkpoint: Checkpoint) -> str:
    known = {
        None: "no stage is wrong on these ids: the fault depends on the ids or the shape",
        Stage.EAGER: f"the precision: {stages[0].name} is itself too far from float64. Export in another --dtype",
        Stage.EXPORT: "the export: a fresh portable export of this checkpoint is wrong too. Please report it",
        Stage.ONNX_RUNTIME: (
            "the backend: the graph is right as it is written, and wrong once ONNX Runtime has optimized it"
        ),
        Stage.PREPARED_GRAPH: (
            "`gptexport trt`: it rewrote a right graph for TensorRT, and the result is wrong. Please report it"
        ),
    }
    if cause in known:
        return known[cause]
    if cause is Stage.ENGINE:
        return _sentence_of_engine(stages, artifact)
    return _sentence_of_graph(artifact, checkpoint)


def _sentence_of_graph(artifact: Artifact, checkpoint: Checkpoint) -> str:
    """A fresh export is right: then it is another checkpoint's, or with other options, or something changed it."""
    whose = artifact.kind if Stage.SOURCE_GRAPH not in artifact.stages else f"{artifact.kind}'s graph"
    source = artifact.source
    if source.get("sha256") not in (None, checkpoint.sha256):
        if not checkpoint.architecture.strict:
            return (
                f"the {whose} was exported from other weights than the factory gives now: it gives others at every "
                "call (seed it, or let it load them), or its file has changed"
            )
        return f"the {whose} was exported from another file than this checkpoint: their hashes differ"
    options = source.get("options")
    exported, asked = dict(options) if isinstance(options, dict) else {}, dict(checkpoint.options)
    other = [name for name in sorted({*exported, *asked}) if exported.get(name) != asked.get(name)]
    if other:
        differing = ", ".join(
            f"{name}: {exported.get(name, 'default')} at export, {asked.get(name, 'default')} here" for name in other
        )
        return f"the {whose} was exported with other options ({differing}); a fresh export is right"
    changes = [*artifact.changes.get(Stage.GRAPH, ()), "a change of the file"]
    return f"what was done to the graph after the portable export, which is right: {', or '.join(changes)}"


def _sentence_of_engine(stages: list[StageResult], artifact: Artifact) -> str:
    if any(result.right is None for result in stages):
        return "TensorRT, or a step before it that could not be run here; see below"
    rounding = artifact.changes.get(Stage.ENGINE)
    if rounding:
        return (
            f"the precision of the engine: it was built with {' and '.join(rounding)}, and the graph it was built "
            "from is right"
        )
    return "TensorRT: the graph it was given is right, and the engine it built is wrong"


def _rms(values: Logits) -> float:
    """Of those that are finite."""
    return float(np.sqrt(np.square(values[np.isfinite(values)], dtype=np.float64).mean()))


def _error(actual: Logits, expected: Logits) -> float:
    """RMS error where the reference is finite; Inf where NaN and Inf are not where the reference has them."""
    if not same_kind(expected, actual):
        return float("inf")
    with np.errstate(invalid="ignore"):
        return _rms(actual.astype(np.float64) - expected)
