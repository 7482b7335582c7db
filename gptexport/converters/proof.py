"""A folder for transformers holds the same model: every weight, read again; and the logits of transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from safetensors import safe_open

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.converters.converter import Weights
from gptexport.errors import ExportError
from gptexport.parity.measure.metrics import Draw, compare
from gptexport.parity.measure.noise import pool_noise
from gptexport.parity.measure.reference import run, run_reference
from gptexport.precision import FLOAT32

SHAPES = ((1, 1), (2, 17), (3, 64))
PAST_WINDOW = 33  # how far a text goes on behind a layer's window
LONGEST = 2048  # of such a text; a guess at what people wait for: a model of 1e9 parameters takes a minute or two


def check_finite(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Refuse weights that are no numbers, or none in `dtype`.

    Raises:
        ExportError: there are; the first is named.
    """
    for name, weight in checkpoint.model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ExportError(f"{name} holds NaN or Inf: the checkpoint is damaged, or its training had failed.")
        if not torch.isfinite(weight.to(dtype)).all():
            most, word = float(weight.abs().max()), str(dtype).removeprefix("torch.")
            raise ExportError(
                f"{name} reaches {most:.3g}, which {word} does not hold. Pass --dtype bfloat16 or float32."
            )


def read_back(folder: Path, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Read the folder as any other, and compare every weight with what was to be written, to the bit.

    Raises:
        ExportError: one differs.
    """
    with safe_open(folder / "model.safetensors", framework="pt", device="cpu") as file:
        for name, weight in weights.items():
            if not torch.equal(file.get_tensor(name), weight.to(dtype)):
                raise ExportError(f"{name} is not what was written. The disk is at fault: write again, elsewhere.")
    return load_checkpoint(str(folder)).model


class Proof:
    """The checkpoint's own logits on some ids, and how far eager PyTorch is from them in float64.

    Args:
        dtype: what the weights were rounded to. Everything is computed in float32 over them.
        window: of a layer, if there is one. A text that goes on behind it is among the ids, if it is not too long.

    Attributes:
        unseen: the window that no text went behind, if so.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, window: int | None = None) -> None:
        model = checkpoint.model
        if dtype != torch.float32:
            model = checkpoint.architecture.model(checkpoint.config).eval().requires_grad_(False)
            model.load_state_dict({name: w.to(dtype).float() for name, w in checkpoint.model.state_dict().items()})
        generator = np.random.default_rng(0)
        past = window + PAST_WINDOW if window is not None and window < checkpoint.block_size else 0
        self.unseen = window if past > LONGEST else None
        longer = [(1, past)] if max(T for _, T in SHAPES) < past <= LONGEST else []
        shapes = [(B, min(T, checkpoint.block_size)) for B, T in (*SHAPES, *longer)]
        self._ids = [generator.integers(0, checkpoint.vocab_size, shape) for shape in shapes]
        self._eager = [run(model, ids) for ids in self._ids]
        self._expected = [expected for ids in self._ids if (expected := run_reference(model, ids)) is not None]

    def noise_ratio(self, compute: Callable[[torch.Tensor], torch.Tensor], who: str) -> float:
        """The RMS error of somebody's float32 logits, relative to eager's.

        Raises:
            ExportError: it is more than parity allows, so that what was written is another model to them.
        """
        found = []
        for ids, expected, eager in zip(self._ids, self._expected, self._eager, strict=True):
            with torch.no_grad():
                actual = compute(torch.from_numpy(ids)).numpy()
            if actual.shape != expected.shape:
                raise ExportError(f"{who} gives logits {actual.shape} of what was written; expected {expected.shape}.")
            found.append(compare([Draw(ids=ids, expected=expected, eager=eager, actual=actual)]))
        ratio = max(each.actual.rms / each.expected_rms for each in found) / pool_noise(found, FLOAT32).rms
        allowed = FLOAT32.gates.noise_ratio
        if allowed is not None and not ratio <= allowed:
            raise ExportError(
                f"{who} computes another model of what was written: its error is {ratio:.3g} × eager's noise; expected "
                f"at most {allowed:g}. Nothing was left behind."
            )
        return ratio


def in_transformers(folder: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], str] | None:
    """What transformers computes of a folder, in float32, and its name; None where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None

    with _without_a_bar():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def compute(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(ids).logits
        return logits

    return compute, f"transformers {transformers.__version__}"


@contextmanager
def _without_a_bar() -> Iterator[None]:
    """transformers shows none of its own meanwhile."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()
