"""What each precision must keep, and how a caller changes it."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from gptexport.precision import PRECISIONS, Gates
from gptexport_runtime import InputError

EPS = {name: precision.eps for name, precision in PRECISIONS.items() if not precision.quantized}
GATES = {name: precision.gates for name, precision in PRECISIONS.items()}


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
