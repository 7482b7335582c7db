"""What a number is, for each precision an export can have: types, bytes, and what parity demands. Torch-free.

To add one, write a `Precision` and put it into PRECISIONS; nothing else compares its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    import torch.nn as nn

    from gptexport.architectures import Architecture
    from gptexport.export.trace import Trace
    from gptexport.recipe import Limits


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The limits that parity holds an artifact to. None: no limit.

    In a floating-point precision the ratios decide. The caps judge the yardstick itself: they bind only where eager is
    noisier than its dtype ever makes a working model, so that being as wrong as eager is no evidence. A float32 model
    whose weights amplify rounding reaches 1e-5 relative RMS; one that runs in TF32 by mistake starts at 3e-4.

    Quantized weights are another model by design: there the statistics decide, over the whole grid.
    """

    noise_ratio: float | None = 2.0  # RMS(actual - float64) / RMS(eager - float64)
    max_ratio: float | None = 4.0  # the same of the largest errors
    relative_rms: float | None = None
    kl_mean: float | None = None  # nats; of a ratio gate for logits whose spread is 1 or less, else × its square
    flips_outside_ties: float | None = 0
    top1_agreement: float | None = None  # at least
    perplexity_ratio: float | None = None  # at most, and at least its inverse; on real text
    statistical: bool = False  # for quantized weights

    @property
    def steps_kl(self) -> float | None:
        """How far, in nats, what single steps predict may be from what the whole text does: each errs by `kl_mean`."""
        return 2 * self.kl_mean if self.statistical and self.kl_mean is not None else None


class Quantizer(Protocol):
    """Makes quantized weights, in two steps."""

    def prepare(
        self, model: nn.Module, architecture: Architecture, limits: Limits, progress: Callable[[str], None]
    ) -> list[str]:
        """Change the model's parameters without changing its function. Returns: what a person should know.

        What is found out about the weights by running the model may be kept for `quantize`.
        """
        ...

    def quantize(self, trace: Trace) -> dict[str, dict[str, int]]:
        """Quantize the traced graph and its weights, in place. Returns: the audit."""
        ...


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One precision. `dtype` is what a graph computes in; `name` differs from it where the weights are quantized."""

    name: str
    dtype: str  # as torch and numpy spell it
    stored_as: tuple[str, ...]  # names of the TensorProto types that its weights have, the export's own first
    bits: int  # of one weight
    eps: float  # distance from 1 to the next number of `dtype`
    gates: Gates
    max_relative_rms: float  # from eager, above which an export is refused: far above rounding, far below a wrong graph
    quantized: bool = False
    quantizer: Callable[[], Quantizer] | None = None  # imports what makes such weights; of a quantized precision
    runs_on_cpu: bool = True  # ONNX Runtime's CPU provider has kernels for it
    plain_onnx: bool = True  # its graphs need no operator of ONNX Runtime's own

    def runs_on(self, device: str) -> bool:
        """Whether ONNX Runtime computes in it there."""
        return self.runs_on_cpu or device != "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """What the model is cast to before it is traced."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def word(self) -> str:
        """What the parameter that asks for it is called."""
        return "quantize" if self.quantized else "dtype"

    @property
    def quantize(self) -> str | None:
        """As `--quantize` and the manifest say it; None for a floating-point precision."""
        return self.name if self.quantized else None


def _statistical(kl_mean: float, perplexity_ratio: float, top1_agreement: float) -> Gates:
    return Gates(
        noise_ratio=None,
        max_ratio=None,
        flips_outside_ties=None,
        kl_mean=kl_mean,
        perplexity_ratio=perplexity_ratio,
        top1_agreement=top1_agreement,
        statistical=True,
    )


def _int8() -> Quantizer:
    from gptexport.export.rewrites import int8

    return int8.Int8()


def _blocks(precision: Precision) -> Quantizer:
    from gptexport.export.rewrites import blocks

    assert precision.gates.kl_mean is not None
    return blocks.Blocks(precision.bits, precision.gates.kl_mean)


FLOAT32 = Precision(
    name="float32",
    dtype="float32",
    stored_as=("FLOAT",),
    bits=32,
    eps=2.0**-23,
    gates=Gates(relative_rms=1e-4, kl_mean=1e-8),
    max_relative_rms=1e-4,
)
FLOAT16 = Precision(
    name="float16",
    dtype="float16",
    stored_as=("FLOAT16",),
    bits=16,
    eps=2.0**-10,
    gates=Gates(relative_rms=1e-2, kl_mean=1e-4),
    max_relative_rms=2e-2,
)
BFLOAT16 = Precision(
    name="bfloat16",
    dtype="bfloat16",
    stored_as=("BFLOAT16",),
    bits=16,
    eps=2.0**-7,
    gates=Gates(relative_rms=5e-2, kl_mean=1e-3),
    max_relative_rms=1e-1,
    runs_on_cpu=False,
)
INT8 = Precision(
    name="int8",
    dtype="float32",
    stored_as=("INT8",),
    bits=8,
    eps=2.0**-23,
    gates=_statistical(kl_mean=0.005, perplexity_ratio=1.005, top1_agreement=0.98),
    max_relative_rms=2e-1,
    quantized=True,
    quantizer=_int8,
    plain_onnx=False,
)
INT8W: Precision = replace(INT8, name="int8w", stored_as=("UINT8",), quantizer=lambda: _blocks(INT8W))
INT4: Precision = Precision(
    name="int4",
    dtype="float32",
    stored_as=("UINT4", "INT4"),
    bits=4,
    eps=2.0**-23,
    gates=_statistical(kl_mean=0.02, perplexity_ratio=1.02, top1_agreement=0.95),
    max_relative_rms=5e-1,
    quantized=True,
    quantizer=lambda: _blocks(INT4),
    plain_onnx=False,
)
PRECISIONS = {precision.name: precision for precision in (FLOAT32, FLOAT16, BFLOAT16, INT8, INT8W, INT4)}


def dtypes() -> list[str]:
    """The names that `--dtype` takes."""
    return [name for name, precision in PRECISIONS.items() if not precision.quantized]


def quantizations() -> list[str]:
    """The names that `--quantize` takes."""
    return [name for name, precision in PRECISIONS.items() if precision.quantized]


def precision_of(dtype: str, quantize: str | None) -> Precision:
    """The precision that a manifest, a sidecar or the command line names in two words.

    Raises:
        KeyError: there is none of that name.
    """
    return PRECISIONS[quantize or dtype]


def most_common(elements: Iterable[tuple[int, int]]) -> Precision:
    """The precision that most weights are stored in.

    Args:
        elements: of each weight its TensorProto type and how many numbers it holds.

    Returns: float32 where there is no weight of any known type.
    """
    from onnx import TensorProto

    by_type = {TensorProto.DataType.Value(name): found for found in PRECISIONS.values() for name in found.stored_as}
    counts = dict.fromkeys(PRECISIONS, 0)
    for kind, count in elements:
        if kind in by_type:
            counts[by_type[kind].name] += count
    most = max(counts, key=lambda name: counts[name])
    return PRECISIONS[most] if counts[most] else FLOAT32
