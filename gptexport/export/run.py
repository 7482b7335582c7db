"""Run what was written, at shapes it was not traced at, against what the eager model said before it was given back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn as nn

from gptexport.errors import ExportError
from gptexport.export.twin import write_twin
from gptexport_runtime.backends.ort.decode import OrtDecoder, open_decoder
from gptexport_runtime.backends.ort.graph import OrtGraph, open_graph
from gptexport_runtime.contract import heads
from gptexport_runtime.errors import ArtifactError, ExecutionError
from gptexport_runtime.generate.cache import Cache
from gptexport_runtime.score import logprobs_of

# Far above what rounding does and far below what a wrong graph does. The verdict on exactness is parity's, not this.
MAX_RELATIVE_RMS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2e-1}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Ids of a shape that was not traced, and what the eager model says to them."""

    ids: npt.NDArray[np.int64]  # (B,T)
    logits: Floats  # (B,T,V)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(B): as if the rows were of unequal length, each at least 1."""
        B, T = self.ids.shape
        return np.asarray(1 + np.arange(T - 1, T - 1 + B) % T)

    def expected(self, kind: str) -> Floats:
        """What the graph of this kind must return."""
        if kind in (heads.LAST.name, heads.DECODE.name):
            return self.logits[np.arange(len(self.ids)), self.lengths - 1]
        if kind == heads.SCORE.name:
            return np.stack([logprobs_of(*row) for row in zip(self.logits, self.ids, strict=True)])
        return self.logits


def take_samples(model: nn.Module, *, block_size: int, vocab_size: int, longest: int) -> list[Sample]:
    """Run the eager model at (1,1), at an odd (3,T), and at T = block_size if the tracer does not vouch for it."""
    draw = np.random.default_rng(0)
    samples = []
    for B, T in [(1, 1), (3, min(11, block_size))] + [(1, block_size)] * (longest < block_size):
        ids = draw.integers(0, vocab_size, (B, T))
        with torch.no_grad():
            samples.append(Sample(ids, model(torch.from_numpy(ids)).float().numpy()))
    return samples


def run_samples(path: Path, kind: str, samples: list[Sample], precision: str) -> float | None:
    """Run a written graph in the runtime's own backend.

    Args:
        precision: the dtype of the weights, or what they are quantized to.

    Returns: the worst relative RMS difference from eager, or None where the CPU provider has no kernels for it.

    Raises:
        ExportError: it does not run, or is not the same function.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    if precision == "bfloat16":
        return None  # ONNX Runtime's CPU provider has no bfloat16 kernels
    try:
        # without prepacking: the export's memory is bounded, and speed does not matter here
        if kind == heads.DECODE.name:
            decoder = open_decoder(path, "cpu", prepack=False)
            errors = [_relative_rms(_decode(decoder, sample), sample.expected(kind)) for sample in samples]
        else:
            graph = open_graph(path, "cpu", kind, prepack=False)
            errors = [_relative_rms(_run(graph, kind, sample), sample.expected(kind)) for sample in samples]
    except (ArtifactError, ExecutionError) as error:
        raise ExportError(f"the exported graph {kind} does not run: {error}") from error
    worst = float(np.max(errors))  # NaN stays NaN, which max() may lose
    if not worst <= MAX_RELATIVE_RMS[precision]:  # NaN fails
        raise ExportError(
            f"the exported graph {kind} differs from the eager model by {worst:.1e} relative RMS; expected at most "
            f"{MAX_RELATIVE_RMS[precision]:.0e} for {precision}. Not a rounding difference: the forward depends on "
            "something that tracing fixed (random numbers, global state), or the weights hold NaN or are beyond "
            "what the precision can hold."
        )
    return worst


def run_twin(path: Path, kind: str, samples: list[Sample]) -> float | None:
    """Run the float32 twin of a graph that only a GPU runs as it is. See `run_samples`.

    Args:
        samples: of the eager model in float32 with the same weights, rounded as they are stored.
    """
    twin = path.with_name(f"{path.stem}.float32{path.suffix}")
    try:
        write_twin(path, twin)
        return run_samples(twin, kind, samples, "float32")
    finally:
        twin.unlink(missing_ok=True)


def _run(graph: OrtGraph, kind: str, sample: Sample) -> Floats:
    out = np.empty(sample.expected(kind).shape, np.float32)
    graph.run(sample.ids, out, sample.lengths if kind == heads.LAST.name else None)
    return out


def _decode(decoder: OrtDecoder, sample: Sample) -> Floats:
    """Each row's last logits the long way: half of it as a prompt, then more at once, then the last token alone."""
    B, T = sample.ids.shape
    cache = Cache(decoder, B, T, decoder.info.vocab_size)
    rows = [row[:length] for row, length in zip(sample.ids, sample.lengths, strict=True)]
    cuts = [(0, len(row) // 2, len(row) - 1, len(row)) for row in rows]
    logits = np.empty((B, decoder.info.vocab_size), np.float32)
    for piece in range(3):
        new = [row[cut[piece] : cut[piece + 1]] for row, cut in zip(rows, cuts, strict=True)]
        if any(len(row) for row in new):
            logits = cache.feed(new)
    return logits


def _relative_rms(actual: Floats, expected: Floats) -> float:
    if not expected.size:
        return 0.0  # there is nothing to score in one token
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    difference = np.sqrt(np.mean(np.square(actual - expected, dtype=np.float64)))
    return float(difference / scale) if scale else float(difference)
