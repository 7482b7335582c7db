"""Is an artifact the same model as its checkpoint? Measure, judge, certify; then say where it is wrong, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gptexport.artifacts import Artifact, Device, describe_artifact
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.parity.guard import noted
from gptexport.parity.locate.diagnosis import Diagnosis, diagnose
from gptexport.parity.measure.draws import Sides, measure_again, measure_batches, measure_shape
from gptexport.parity.measure.heads import measure_heads
from gptexport.parity.measure.invariances import Accepts, measure_invariances
from gptexport.parity.measure.measured import Measured, load_measured
from gptexport.parity.measure.metrics import Ids, ShapeStats
from gptexport.parity.measure.noise import allowed_change
from gptexport.parity.measure.reference import eager_in, on_device
from gptexport.parity.measure.shapes import Shape, choose_grid
from gptexport.parity.measure.special_ids import ids_of_text, special_batches, special_ids
from gptexport.parity.measure.tokens import TokenSource
from gptexport.parity.measure.weights import compare_weights
from gptexport.parity.result import GeluMismatch, ParityResult
from gptexport.parity.verdict.certificate import certify, environment
from gptexport.parity.verdict.gates import changed_gates
from gptexport.parity.verdict.judge import Verdict, judge
from gptexport.precision import FLOAT32, Precision
from gptexport_runtime import Session, load

Progress = Callable[[str], None]


def check_parity(
    artifact: str | Path | Artifact,
    checkpoint: str | Checkpoint,
    *,
    shapes: Sequence[Shape] | None = None,
    tokens: Ids | None = None,
    device: Device | None = None,
    gates: Mapping[str, str | float | None] | None = None,
    quick: bool = False,
    source: str | None = None,
    record: bool = True,
    open_session: Callable[..., Session] | None = None,
    progress: Progress = lambda _step: None,
) -> ParityResult:
    """Compare an artifact with the checkpoint that it was exported from, as `gptexport parity` does.

    The verdict comes first, and is recorded where the artifact has a place for it, unless it is that of `quick` or of
    other `gates`. What follows, the search for what is wrong, cannot take it back.

    Args:
        artifact: a bundle, an .onnx or an .engine.
        checkpoint: what it was exported from, loaded or where it is: see `load_for`.
        shapes: the (B,T) to compare at; a grid up to block_size where None.
        tokens: real text as a row of ids; random ids otherwise.
        device: where the artifact runs; None: the CPU, an engine on a GPU.
        gates: other numbers for some of the precision's gates; None as a number lifts the gate.
        quick: two small shapes and the logits alone, and no search for the cause.
        source: what to call the checkpoint in a report.
        record: write the verdict where the artifact has a place for it.
        open_session: opens the artifact, with the keyword arguments of `load`; None: `load` does. A session that runs
            elsewhere, in a browser, is measured in this way.
        progress: is called with what is being done.

    Raises:
        ShapeError: a shape is longer than the model's context, or outside what the artifact takes.
        InputError: there is no such gate.
        GPTExportError: the artifact or the checkpoint cannot be opened, or the text is shorter than a shape.
    """
    described = describe_artifact(Path(artifact)) if isinstance(artifact, str | Path) else artifact
    limits = changed_gates(described.precision.gates, gates or {})
    if isinstance(checkpoint, str):
        source, checkpoint = source or checkpoint, load_for(described, checkpoint)
    grid = choose_grid(described, checkpoint.block_size, shapes, quick=quick)
    device = device or described.device
    opened = open_session or partial(load, described.path, device=device)
    notes: list[str] = []
    certificate, diagnosis = None, Diagnosis()
    with opened(verify=True) as session:
        measured = measure_parity(
            session,
            checkpoint,
            grid,
            precision=described.precision,
            graph=described.graph,
            tokens=tokens,
            accepts=described.accepts,
            progress=progress,
        )
        if not quick:
            measured = _with_other_heads(measured, described, opened, tokens, progress)
        origin = environment(described, source or checkpoint.format, session, checkpoint.sha256)
        measured = replace(measured, environment=origin)
        verdict = judge(measured, limits)
        progress(f"the verdict: {'PASS' if verdict else 'FAIL'}")
        if (why_not := _why_not_recorded(verdict, described, checkpoint)) is not None:
            notes.append(why_not)
        elif record and not quick and not gates:
            with noted("the verdict could not be recorded", notes):
                certificate = certify(described, verdict, checkpoint.sha256, session.device)
        if not quick or not verdict:
            with noted("what is wrong could not be looked for", notes):
                diagnosis = diagnose(
                    session, checkpoint, described, verdict, tokens=tokens, causes=not quick, progress=progress
                )
    return ParityResult(
        verdict=verdict,
        measured=measured,
        diagnosis=diagnosis,
        certificate=certificate,
        notes=(*notes, *diagnosis.notes),
        gelu=_gelu_mismatch(described, checkpoint),
    )


def judge_saved(path: Path, gates: Mapping[str, str | float | None]) -> ParityResult:
    """Judge what an earlier check saved, without the model.

    Raises:
        GPTExportError: the file holds something else.
        InputError: there is no such gate.
    """
    measured = load_measured(path)
    return ParityResult(verdict=judge(measured, changed_gates(measured.precision.gates, gates)), measured=measured)


def load_for(
    artifact: Artifact,
    checkpoint: str,
    *,
    vocab_size: int | None = None,
    block_size: int | None = None,
    **assumed: Any,
) -> Checkpoint:
    """Load the checkpoint that an artifact was exported from, as small as it was exported.

    Never with the GELU that it was exported with: a wrong one is what parity is there to find.

    Args:
        assumed: what the checkpoint may not say, as `load_checkpoint` takes it: gelu, n_head, ...
        vocab_size, block_size: what the artifact says where None.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    exported = artifact.source.get("options")
    options = exported if isinstance(exported, Mapping) else {}
    return load_checkpoint(
        checkpoint,
        **assumed,
        vocab_size=vocab_size or options.get("vocab_size"),
        block_size=block_size or options.get("block_size"),
    )


def measure_parity(
    session: Session,
    checkpoint: Checkpoint,
    shapes: Sequence[Shape],
    *,
    precision: Precision = FLOAT32,
    graph: Path | None = None,
    tokens: Ids | None = None,
    accepts: Accepts = lambda _B, _T: True,
    progress: Progress = lambda _step: None,
) -> Measured:
    """Compare at every shape, and see whether what must not change a row changes it.

    Args:
        shapes: the (B,T) to compare at.
        precision: of the artifact: eager runs in its dtype too.
        graph: the .onnx that the session runs, so that the weights in it are compared too.
        tokens: real text as a row of ids; random ids otherwise.
        accepts: whether the session runs at (B,T).

    Raises:
        GPTExportError: the text is shorter than a shape.
        InputError: a shape is longer than the model's context.
    """
    measured = Measured(precision=precision, real_text=tokens is not None)
    mismatch = _mismatch(session, checkpoint)
    if mismatch:
        return replace(measured, mismatch=mismatch)
    source = TokenSource(checkpoint.predicted_ids, tokens)
    source.check(shapes)
    model = on_device(checkpoint.model, session.device)
    sides = Sides(
        session=session,
        model=model,
        eager=eager_in(model, precision),
        source=source,
        precision=precision,
        intended=all(bool(parameter.isfinite().all()) for parameter in model.parameters()),
    )
    stats: list[ShapeStats] = []
    for number, shape in enumerate(shapes, start=1):
        progress("comparing at B,T = {},{} ({} of {})".format(*shape, number, len(shapes)))
        stats.append(measure_shape(sides, shape))
    measured = replace(measured, stats=tuple(stats))
    if not all(s.eager.finite and s.actual.finite for s in stats):
        return measured  # NaN is its own reason
    for at, row in enumerate(() if precision.gates.statistical else judge(measured).shapes):
        if row.maybe_unlucky:
            progress("once more at B,T = {},{}, on other ids: little is amiss".format(*row.shape))
            stats[at] = measure_again(sides, stats[at])
    measured = replace(measured, stats=tuple(stats))
    progress("checking special ids, causality and batch invariance")
    measured = _with_special_ids(measured, sides, ids_of_text(checkpoint), shapes, accepts)
    allowed = allowed_change(measured.stats, precision)
    invariances = measure_invariances(sides, shapes, allowed, accepts)
    if graph is not None and not precision.quantized:
        invariances += compare_weights(checkpoint.model, graph, precision)
    return replace(measured, invariances=tuple(invariances))


def _with_special_ids(
    measured: Measured, sides: Sides, special: Collection[int], shapes: Sequence[Shape], accepts: Accepts
) -> Measured:
    """Also on rows of ids that a forward may treat specially."""
    batches = special_batches(sides.source, special, shapes, accepts)
    found = replace(
        measured, special=measure_batches(sides, batches), special_ids=tuple(special_ids(sides.source, special))
    )
    row = judge(found).special
    if row is not None and found.special is not None and row.maybe_unlucky:
        found = replace(found, special=measure_again(sides, found.special, batches))
    return found


def _with_other_heads(
    measured: Measured, artifact: Artifact, opened: Callable[..., Session], tokens: Ids | None, progress: Progress
) -> Measured:
    """Also how far the other graphs of the bundle are from the logits."""
    if len(artifact.heads) < 2 or not measured.invariances:
        return measured
    progress("comparing the other graphs of the bundle")
    shapes = [s.shape for s in measured.stats]
    many, longest = max(shapes, key=lambda s: s[0] * (s[1] > 1)), max(shapes, key=lambda s: s[1])
    allowed, allowed_kl = allowed_change(measured.stats, measured.precision), measured.precision.gates.steps_kl
    with opened(prepack=False) as lean:  # each graph of a session has its own copy
        source = TokenSource(lean.config.predicted_ids, tokens)
        batches = [source.batch(shape, seed=2) for shape in dict.fromkeys((many, longest))]
        found = measure_heads(lean, artifact.heads, batches, allowed, allowed_kl)
    return replace(measured, invariances=(*measured.invariances, *found))


def _mismatch(session: Session, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Two models whose limits differ are not the same; no number is needed."""
    reasons = []
    for name in ("vocab_size", "block_size"):
        got, expected = getattr(session.config, name), getattr(checkpoint, name)
        if got is not None and got != expected:
            reasons.append(f"the artifact's {name} is {got}, the checkpoint's {expected}: this is not its export")
    return tuple(reasons)


def _why_not_recorded(verdict: Verdict, artifact: Artifact, checkpoint: Checkpoint) -> str | None:
    """A failure against something else than was exported says nothing of the artifact, whose certificate stays."""
    if verdict:
        return None
    exported = artifact.source.get("sha256")
    if exported is not None and exported != checkpoint.sha256:
        return "the failure is not recorded: this is another checkpoint than the artifact was exported from"
    if _gelu_mismatch(artifact, checkpoint) is not None:
        return "the failure is not recorded: the artifact was exported with another GELU than this check assumes"
    return None


def _gelu_mismatch(artifact: Artifact, checkpoint: Checkpoint) -> GeluMismatch | None:
    exported = artifact.model.get("gelu")
    assumed = checkpoint.config.to_dict().get("gelu")
    different = exported is not None and assumed is not None and exported != assumed
    return GeluMismatch(str(exported), str(assumed)) if different else None
