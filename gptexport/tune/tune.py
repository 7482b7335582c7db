"""Export every candidate, measure each, and keep the fastest within the bounds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptexport.bench.measure import measure
from gptexport.bench.worker import workers
from gptexport.checkpoints import Checkpoint
from gptexport.errors import ExportError
from gptexport.export import export
from gptexport.parity import check_parity
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.result import ParityResult
from gptexport.precision import FLOAT32
from gptexport.recipe import Recipe
from gptexport.staging import staged
from gptexport.tokenizers import BundledTokenizer
from gptexport.tune.candidates import Candidate, candidates
from gptexport.tune.choose import Bounds, Measurement, ranked
from gptexport.tune.work import Work
from gptexport_runtime.contract.heads import Head

Shape = tuple[int, int]
Progress = Callable[[str], None]
PACKAGES = ("gptexport", "gptexport-runtime", "onnxruntime", "torch")
SHAPES = ((1, 1), (3, 17), (1, 128))  # of parity, for the errors of all; the one that is kept is checked in full


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be fast, and within which bounds."""

    shape: Shape
    head: Head
    bounds: Bounds
    rounds: int = 7
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was measured, and what was kept."""

    measurements: tuple[Measurement, ...]
    within: tuple[Measurement, ...]  # the fastest first
    chosen: Measurement
    baseline: str
    left_out: Mapping[str, str]  # candidates that could not be exported or run, and why
    verdict: ParityResult
    notes: tuple[str, ...]


def tune(
    checkpoint: Checkpoint,
    out: Path,
    asked: Asked,
    *,
    tokens: Ids | None = None,
    tokenizer: BundledTokenizer | None = None,
    force: bool = False,
    progress: Progress = lambda _step: None,
) -> Tuned:
    """Write the fastest bundle within the bounds to `out`, with parity's certificate.

    What is done is kept in a folder beside `out` until the end, so that a run that was stopped goes on.

    Args:
        tokens: real text as a row of ids, for the errors; random ids otherwise.

    Raises:
        ExportError: nothing is within the bounds; the measurements are kept.
        OutputExistsError: `out` is there and `force` is not given.
    """
    key = {
        "checkpoint": checkpoint.sha256,
        "limits": [checkpoint.block_size, checkpoint.vocab_size],
        "assumed": checkpoint.assumed,
        "tokens": hashlib.sha256(tokens.tobytes()).hexdigest() if tokens is not None else None,
        "tokenizer": [tokenizer.name, hashlib.sha256(tokenizer.data).hexdigest()] if tokenizer is not None else None,
        "versions": {name: version(name) for name in PACKAGES},
    }
    work, left_out, made = Work(out, key), dict[str, str](), dict[Candidate, Mapping[str, Any]]()
    for candidate in candidates(asked.head):
        try:
            made[candidate] = _exact(candidate, work, checkpoint, asked, tokens, tokenizer, progress)
        except ExportError as error:
            left_out[candidate.name] = str(error)
            progress(f"without {candidate.name}: {error}")
    if not made:
        reasons = dict.fromkeys(left_out.values())
        raise ExportError(f"none of {len(left_out)} candidates could be exported: {' '.join(reasons)}")
    measurements, baseline = _timed(made, work, asked, progress)
    within = ranked(measurements, asked.bounds)
    for chosen in within:
        candidate = next(each for each in made if each.name == chosen.name)
        progress(f"{chosen.name} is the fastest within the bounds: checking it in full")
        verdict = check_parity(
            work.bundle(chosen.name), checkpoint, tokens=tokens, device=candidate.device, progress=progress
        )
        if verdict:
            break
        left_out[chosen.name] = "; ".join(verdict.verdict.reasons)
        progress(f"without {chosen.name}: {left_out[chosen.name]}")
    else:
        raise ExportError(f"nothing within the bounds passes parity in full ({left_out}).")
    with staged(out, force=force) as folder:
        for file in filter(Path.is_file, work.bundle(chosen.name).iterdir()):
            shutil.copyfile(file, folder / file.name)
    work.remove()
    return Tuned(
        measurements=tuple(measurements),
        within=tuple(m for m in within if m.name not in left_out),
        chosen=chosen,
        baseline=baseline,
        left_out=left_out,
        verdict=verdict,
        notes=tuple(verdict.notes),
    )


def _exact(
    candidate: Candidate,
    work: Work,
    checkpoint: Checkpoint,
    asked: Asked,
    tokens: Ids | None,
    tokenizer: BundledTokenizer | None,
    progress: Progress,
) -> Mapping[str, Any]:
    """Export a candidate and measure its error, unless a run before has done so."""
    known = work.found(candidate.name)
    if known is not None:
        progress(f"{candidate.name}: measured before")
        return known
    bundle = work.bundle(candidate.name)
    progress(f"exporting {candidate.name}")
    recipe = Recipe(target=candidate.target, precision=candidate.precision, tokenizer=tokenizer)
    export(checkpoint, bundle, recipe, force=True)
    shapes = list(dict.fromkeys((B, min(T, checkpoint.block_size)) for B, T in SHAPES))
    result = check_parity(bundle, checkpoint, shapes=shapes, tokens=tokens, device=candidate.device, quick=True)
    summary = result.verdict.summary
    found = {
        "kl": summary.kl.mean if summary is not None else float("nan"),
        "noise_ratio": max((row.noise_ratio for row in result.verdict.shapes), default=float("nan")),
        "parity": bool(result),
        "disk": sum(file.stat().st_size for file in bundle.iterdir() if file.is_file()),
    }
    work.keep(candidate.name, found)
    return found


def _timed(
    made: Mapping[Candidate, Mapping[str, Any]], work: Work, asked: Asked, progress: Progress
) -> tuple[list[Measurement], str]:
    """All candidates in interleaved rounds, each in a process of its own, and the name of the baseline."""
    specifications = {
        candidate.name: {
            "side": "session",
            "artifact": str(work.bundle(candidate.name)),
            "device": candidate.device,
            "threads": asked.threads,
            "head": asked.head.name,
        }
        for candidate in made
    }
    baseline = baseline_of(list(made))
    progress(f"opening {', '.join(specifications)}, each in a process of its own")
    with ExitStack() as stack:
        sides = stack.enter_context(workers(specifications))
        for side in sides.values():
            side.ready()
        timings = measure(sides, [asked.shape], baseline=baseline, rounds=asked.rounds, progress=progress)
        peaks = {name: side(asked.shape, settle=0, spend=0).peak for name, side in sides.items()}
    exact = {candidate.name: found for candidate, found in made.items()}
    return [
        Measurement(name=t.name, seconds=t.warm, ratio=t.ratio, memory=peaks[t.name], **exact[t.name]) for t in timings
    ], baseline


def baseline_of(made: Sequence[Candidate]) -> str:
    """The first float32 candidate that is rewritten for its target, as the CPU's is; else the first in float32."""
    wide = [each for each in made if each.precision is FLOAT32]
    own = [each for each in wide if each.target.rewrites(each.precision)]
    return (own or wide or list(made))[0].name
