"""What each precision must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from gptexport_runtime import InputError


@dataclass(frozen=True, kw_only=True)
class Gates:
    """None: not asked.

    In a floating-point dtype the ratios decide. The caps judge the yardstick itself: they bind only where eager is
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
    statistical: bool = False  # of quantized weights


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


EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
GATES = {
    "float32": Gates(relative_rms=1e-4, kl_mean=1e-8),
    "float16": Gates(relative_rms=1e-2, kl_mean=1e-4),
    "bfloat16": Gates(relative_rms=5e-2, kl_mean=1e-3),
    "int8": _statistical(kl_mean=0.005, perplexity_ratio=1.005, top1_agreement=0.98),
    "int4": _statistical(kl_mean=0.05, perplexity_ratio=1.05, top1_agreement=0.92),
}


def changed_gates(gates: Gates, changes: dict[str, str]) -> Gates:
    """`gates` with some set to other numbers, or to `none`.

    Raises:
        InputError: there is no such gate, or that is no number of 0 or more.
    """
    known = [field.name for field in fields(Gates) if field.name != "statistical"]
    values: dict[str, float | None] = {}
    for name, text in changes.items():
        if name not in known:
            raise InputError(f"gate {name!r} is not known; expected one of {', '.join(known)}.")
        try:
            number = None if text == "none" else float(text)
        except ValueError:
            number = math.nan
        if number is not None and not number >= 0:  # nor NaN, which nothing keeps
            raise InputError(f"gate {name} is {text!r}; expected a number of 0 or more, or none.")
        values[name] = number
    return replace(gates, **values)  # type: ignore[arg-type]  # never `statistical`, which alone is a bool
