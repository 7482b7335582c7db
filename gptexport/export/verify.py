"""What must hold of a written graph before anyone sees it: its interface, its kernels, its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn as nn

from gptexport.errors import ExportError
from gptexport.export.rewrites import Audit
from gptexport.export.rewrites.float32 import write_float32
from gptexport.precision import FLOAT32, Precision
from gptexport.recipe import Limits, Recipe
from gptexport.teacher_forcing import feed_pieces
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.names import AXIS_V
from gptexport_runtime.errors import ArtifactError, ExecutionError
from gptexport_runtime.generate.cache import Cache

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Run(Enum):
    """How the numbers of a graph were checked on the CPU."""

    AS_IT_IS = "as it is, on the CPU"
    IN_FLOAT32 = "in float32, on the CPU"

    @property
    def unchecked(self) -> str:
        """What this leaves unchecked, as the manifest says it."""
        return "; the rounding of the 16-bit kernels is not checked" if self is Run.IN_FLOAT32 else ""


@dataclass(frozen=True)
class Sample:
    """Ids of a shape that was not traced, and the eager model's logits."""

    ids: Ids  # (B,T)
    logits: Floats  # (B,T,V)

    @property
    def lengths(self) -> Ids:
        """(B): as if the rows were of unequal length, each at least 1."""
        B, T = self.ids.shape
        return np.asarray(1 + np.arange(T - 1, T - 1 + B) % T)

    def expected(self, head: Head) -> Floats:
        """What the head's graph must return."""
        return head.from_logits(self.logits, self.ids, self.lengths)


def take_samples(model: nn.Module, limits: Limits, *, longest: int) -> list[Sample]:
    """Run the eager model at (1,1), at an odd (3,T), on ids that models treat specially, and where need be at the end.

    Args:
        model: in the precision of the export.
        longest: the T that the tracer vouches for; T = block_size is run where that is more.

    Raises:
        ExportError: the forward does not run in the precision.
    """
    draw = np.random.default_rng(0)
    V, T = limits.vocab_size, min(11, limits.block_size)
    batches = [draw.integers(0, V, (B, length)) for B, length in ((1, 1), (3, T))]
    if longest < limits.block_size:
        batches.append(draw.integers(0, V, (1, limits.block_size)))
    batches.append(special_ids(draw.integers(0, V, (5, min(7, limits.block_size))), V))
    samples = []
    for ids in batches:
        try:
            with torch.no_grad():
                logits = model(torch.from_numpy(ids)).float().numpy()
        except Exception as error:  # a user's forward may raise anything
            raise ExportError(
                f"eager PyTorch does not run the forward in the precision of the export: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}. Pass dtype float32, or let the forward cast what "
                "it makes to the dtype of its weights."
            ) from error
        samples.append(Sample(ids, logits))
    return samples


def explain_nan(samples: Sequence[Sample], original: nn.Module) -> None:
    """A forward may give NaN on purpose, for rows of padding say; a damaged weight or too narrow a dtype is refused.

    Args:
        original: the model as it was loaded.

    Raises:
        ExportError: logits are NaN that would not be, but for a weight or the precision.
    """
    found = [sample for sample in samples if np.isnan(sample.logits).any()]
    for name, weight in original.named_parameters() if found else ():
        if not torch.isfinite(weight).all():
            raise ExportError(
                f"the weight {name} holds NaN or infinity. Check the training run, or an earlier checkpoint."
            )
    for sample in found:
        with torch.no_grad():
            wide = original(torch.from_numpy(sample.ids)).float().numpy()
        if (np.isnan(sample.logits) & ~np.isnan(wide)).any():
            raise ExportError(
                "the eager model gives NaN in the precision of the export and not in float32: its weights or "
                "activations are beyond what the precision can hold. Export in another dtype."
            )


def special_ids(ids: Ids, vocab_size: int) -> Ids:
    """`ids` (5,T) with rows as padding, document masks and end tokens make them: whole, at the front, at the end."""
    first, last = 0, vocab_size - 1
    half = ids.shape[1] // 2
    ids[0], ids[1] = first, last
    ids[2, : half + 1] = first
    ids[3, half:] = first
    ids[4, half] = last
    return ids


def check_graph(path: Path, head: Head) -> None:
    """Check the file against the ONNX specification, with full shape inference, and its interface against the head's.

    Raises:
        ExportError: the file is not valid ONNX, or its axes are not symbolic.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    model = onnx.load(str(path), load_external_data=False)
    expected = head.signature
    inputs, outputs = model.graph.input[: len(expected.inputs)], model.graph.output[:1]
    got = {value.name: _axes(value) for value in (*inputs, *outputs)}
    wanted = {**expected.inputs, expected.output: expected.output_axes}
    if [*got] != [*wanted] or not all(_fits(axes, wanted[name]) for name, axes in got.items()):
        raise ExportError(
            f"the exported graph {head} takes and returns {got}; expected {wanted}, V a number. The forward fixes an "
            "axis, or does not return (B,T,V)."
        )


def check_numbers(path: Path, head: Head, samples: Sequence[Sample], recipe: Recipe) -> float:
    """Run a written graph in the runtime's own backend, at shapes it was not traced at, against eager.

    Args:
        samples: where the graph is run in float32, of the eager model in float32 with the weights rounded as stored.

    Returns: the worst relative RMS difference.

    Raises:
        ExportError: it does not run, or is not the same function.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    if not needs_float32(recipe):
        return _check(path, head, samples, recipe.precision)
    wide = path.with_name(f"{path.stem}.float32{path.suffix}")
    try:
        write_float32(path, wide)
        return _check(wide, head, samples, FLOAT32)
    finally:
        wide.unlink(missing_ok=True)


def needs_float32(recipe: Recipe) -> bool:
    """Whether the CPU has no kernels for the graphs as they are."""
    return not recipe.target.runs_on_cpu(recipe.precision)


def compare_counts(expected: dict[str, int], achieved: dict[str, int]) -> Audit:
    """How many operations should have stayed whole in the trace, and how many did."""
    return {op: {"expected": count, "achieved": achieved.get(op, 0)} for op, count in expected.items()}


def check_audit(audit: Audit) -> None:
    """Raise ExportError where something fell short that is expected of an architecture of ours."""
    short = [
        f"{op}: {row['achieved']} of {row['expected']}"
        for op, row in audit.items()
        if row["achieved"] < row["expected"]
    ]
    if short:
        raise ExportError(
            f"fewer whole operations than expected ({', '.join(short)}). This is a bug in gptexport: please report it."
        )


def _check(path: Path, head: Head, samples: Sequence[Sample], precision: Precision) -> float:
    try:
        # without prepacking: the export's memory is bounded, and speed does not matter here
        backend = OrtBackend(CPU, {head.name: path}, OpenOptions(prepack=False))
        run = _decode(backend, head) if head.cached else _run(backend, head)
        errors = [_relative_rms(run(sample), sample.expected(head)) for sample in samples]
    except (ArtifactError, ExecutionError) as error:
        raise ExportError(f"the exported graph {head} does not run: {error}") from error
    worst = float(np.max(errors))  # NaN stays NaN, which max() may lose
    if not worst <= precision.max_relative_rms:  # NaN fails
        why = f"{precision.bits} bits lose this model, or" if precision.quantized else "Not a rounding difference:"
        raise ExportError(
            f"the exported graph {head} differs from the eager model by {worst:.1e} relative RMS; expected at most "
            f"{precision.max_relative_rms:.0e} for {precision.name}. {why} the forward depends on something that "
            "tracing fixed (random numbers, global state), or the weights hold NaN or are beyond what the precision "
            "can hold."
        )
    return worst


def _run(backend: OrtBackend, head: Head) -> Callable[[Sample], Floats]:
    graph = backend.open(head)

    def run(sample: Sample) -> Floats:
        out = np.empty(graph.output_shape(*sample.ids.shape), np.float32)
        graph.run(sample.ids, sample.lengths, out)
        return out

    return run


def _decode(backend: OrtBackend, head: Head) -> Callable[[Sample], Floats]:
    """Each row's last logits the long way: half of it as a prompt, then more at once, then the last token alone."""
    decoder = backend.open_decoder(head)

    def run(sample: Sample) -> Floats:
        B, T = sample.ids.shape
        cache = Cache(decoder, B, T, decoder.info.vocab_size)
        rows = [row[:length] for row, length in zip(sample.ids, sample.lengths, strict=True)]
        ends = [sample.lengths // 2, sample.lengths - 1, sample.lengths]
        logits = np.empty((B, decoder.info.vocab_size), np.float32)
        for grown, after in feed_pieces(cache, rows, ends):
            logits[grown] = after
        return logits

    return run


def _relative_rms(actual: Floats, expected: Floats) -> float:
    """Over what is finite; NaN or infinity that is not where, and as, the expected one is makes it infinite."""
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        return np.inf
    actual, expected = actual[finite], expected[finite]
    if not expected.size:
        return 0.0  # there is nothing to score in one token
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    difference = np.sqrt(np.mean(np.square(actual - expected, dtype=np.float64)))
    return float(difference / scale) if scale else float(difference)


def _axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _fits(got: Sequence[str | int], wanted: Sequence[str]) -> bool:
    """The vocabulary is a number in the file, every other axis the name that the contract gives it."""
    return len(got) == len(wanted) and all(
        isinstance(dim, int) and dim > 0 if name == AXIS_V else dim == name
        for dim, name in zip(got, wanted, strict=True)
    )
