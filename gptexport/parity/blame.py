"""Which step on the way from the checkpoint to the session broke the model: each is run, the first wrong one named."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch.nn as nn

from gptexport.checkpoints import Checkpoint
from gptexport.engine.prepare import prepare_graph
from gptexport.export import export_onnx
from gptexport.parity.expose import in_float32, run_exposed
from gptexport.parity.gates import EPS, GATES
from gptexport.parity.metrics import Logits
from gptexport.parity.reference import eager_in, run, run_reference
from gptexport.parity.tokens import Ids
from gptexport_runtime import GPTExportError, Session
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import LOGITS


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


Compute = Callable[[], Logits]

FRESH_EXPORT_BYTES = 2 << 30  # of weights; an export needs about 2.5 times as much
EAGER, EXPORT, GRAPH = "eager PyTorch", "portable export", "this graph, as it is written"
SESSION = "this graph, as the session runs it"
ORIGIN, PREPARED = "the engine's graph, as it is written", "that graph, as it is given to TensorRT"
ENGINE = "the engine, as TensorRT runs it"
WIDENED = ", in float32"  # with bfloat16 weights, which ONNX Runtime's CPU does not take


def find_blame(
    session: Session,
    checkpoint: Checkpoint,
    graph: Path | None,
    ids: Ids,
    *,
    dtype: str,
    progress: Callable[[str], None] = lambda _step: None,
) -> Blame:
    """Compare eager, a fresh portable export, the graph as written and the session, all on the same ids.

    Args:
        graph: what the session runs; of an engine what it was built from, or None where that is not here.
    """
    expected = run_reference(checkpoint.model, ids)
    scale = _rms(expected, np.zeros(1))
    eager = _rms(run(eager_in(checkpoint.model, dtype), ids), expected)
    noise = max(eager, EPS[dtype] / 2 * scale)

    def stage(name: str, compute: Compute) -> Stage:
        progress(f"whom to blame: {name}")
        try:
            ratio = _rms(compute(), expected) / noise
        except Exception as error:
            return Stage(
                name=name,
                noise_ratio=None,
                right=None,
                why=(str(error).splitlines() or [type(error).__name__])[0][:300],
            )
        return Stage(name=name, noise_ratio=ratio, right=bool(ratio <= (GATES[dtype].noise_ratio or 2.0)))

    steps = _steps_of_engine if session.engine is not None else _steps_of_graph
    stages = (
        _precision(eager / scale if scale else 0.0, dtype),
        stage(EXPORT, lambda: _run_fresh_export(checkpoint, ids, dtype)),
        *(stage(name, compute) for name, compute in steps(session, graph, ids, dtype).items()),
    )
    culprit = next((s.name for s in stages if s.right is False), None)
    return Blame(stages=stages, culprit=culprit, sentence=_sentence(stages, culprit, session, checkpoint))


def _precision(relative: float, dtype: str) -> Stage:
    """Eager is the yardstick, unless it is none: in float16 logits may be far off, or not finite."""
    allowed = GATES[dtype].relative_rms or np.inf
    if relative <= allowed:
        return Stage(name=f"{EAGER} in {dtype}", noise_ratio=1.0, right=True)
    why = f"relative RMS error {relative:.1e}; at most {allowed:.0e}"
    return Stage(name=f"{EAGER} in {dtype}", noise_ratio=None, right=False, why=why)


def _steps_of_graph(session: Session, graph: Path | None, ids: Ids, dtype: str) -> dict[str, Compute]:
    assert graph is not None, "only an engine may be without its graph"
    return {
        GRAPH: lambda: run_exposed(graph, ids, [], device=session.device, optimize=False)[LOGITS],
        SESSION: lambda: session.logits(ids),
    }


def _steps_of_engine(session: Session, graph: Path | None, ids: Ids, dtype: str) -> dict[str, Compute]:
    """Its graph in ONNX Runtime, before and after it was rewritten for TensorRT; then the engine itself."""
    widened = WIDENED if dtype == "bfloat16" else ""

    def run_written(*, prepared: bool) -> Logits:
        if graph is None:
            raise GPTExportError("not found beside the engine; say where it is with --graph")
        model = onnx.load(str(graph), load_external_data=False)
        return _run_on_cpu(prepare_graph(model)[0] if prepared else model, graph, ids, dtype)

    return {
        ORIGIN + widened: lambda: run_written(prepared=False),
        PREPARED + widened: lambda: run_written(prepared=True),
        ENGINE: lambda: session.logits(ids),
    }


def _run_on_cpu(model: onnx.ModelProto, path: Path, ids: Ids, dtype: str) -> Logits:
    if dtype == "bfloat16":
        model = in_float32(model, path.parent)
    return run_exposed(path, ids, [], optimize=False, model=model)[LOGITS]


def _run_fresh_export(checkpoint: Checkpoint, ids: Ids, dtype: str) -> Logits:
    with tempfile.TemporaryDirectory() as folder:
        path = fresh_export(checkpoint, Path(folder), dtype)
        return _run_on_cpu(onnx.load(str(path), load_external_data=False), path, ids, dtype)


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
    return made.path / made.manifest.graphs[heads.LOGITS.name].file


def _sentence(stages: tuple[Stage, ...], culprit: str | None, session: Session, checkpoint: Checkpoint) -> str:
    if culprit is None:
        return "none is wrong on these ids alone: the fault depends on the ids or the shape"
    if culprit == SESSION:
        return "the backend: the graph as it is written is right, and wrong once ONNX Runtime has optimized it"
    if culprit == stages[0].name:
        return f"the precision: {culprit} is itself too far from float64. Export in another --dtype"
    if culprit == PREPARED or culprit == PREPARED + WIDENED:
        return "`gptexport trt`: it rewrote a right graph for TensorRT, and that is wrong. Please report it"
    if culprit == ENGINE:
        return _sentence_of_engine(stages, session)
    if culprit == EXPORT:
        return "the export: a fresh portable export of this checkpoint is wrong too. Please report it"
    manifest, described = session.manifest, session.manifest or session.engine
    source = described.source if described else {}
    if source.get("sha256") not in (None, checkpoint.sha256):
        return f"the {_kind(session)} was exported from another file than this checkpoint: their hashes differ"
    exported, asked = dict(source.get("options") or {}), dict(checkpoint.options)
    other = [name for name in sorted({*exported, *asked}) if exported.get(name) != asked.get(name)]
    if other:
        told = ", ".join(f"{name} {exported.get(name)} then, {asked.get(name)} now" for name in other)
        return f"the {_kind(session)} was exported with other options ({told}); a fresh export is right"
    done = [f"--quantize {manifest.quantize}"] if manifest and manifest.quantize else []
    done += [f"target {manifest.target!r}"] if manifest and manifest.target != "portable" else []
    done.append("a change of the file")
    return f"what was done to the graph after the portable export, which is right: {', or '.join(done)}"


def _sentence_of_engine(stages: tuple[Stage, ...], session: Session) -> str:
    assert session.engine is not None
    if any(stage.right is None for stage in stages):
        return "TensorRT, or a step before it that could not be run here; see below"
    if session.engine.options.get("tf32"):
        return "the precision of the engine: it was built with --tf32, and the graph it was built from is right"
    return "TensorRT: the graph it was given is right, and the engine it built is wrong"


def _kind(session: Session) -> str:
    return "engine's graph" if session.engine is not None else "bundle"


def _rms(a: Logits, b: Logits) -> float:
    return float(np.sqrt(np.square(a.astype(np.float64) - b).mean()))
