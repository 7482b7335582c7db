"""How a caller changes what has to be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace

from gptexport.precision import Gates
from gptexport_runtime import InputError


def changed_gates(gates: Gates, changes: Mapping[str, str | float | None]) -> Gates:
    """`gates` with some set to other numbers, or to none: "none" or None.

    Raises:
        InputError: there is no such gate, or that is no number of 0 or more.
    """
    known = [field.name for field in fields(Gates) if field.name != "statistical"]
    values: dict[str, float | None] = {}
    for name, value in changes.items():
        if name not in known:
            raise InputError(f"gate {name!r} is not known; expected one of {', '.join(known)}.")
        try:
            number = None if value in (None, "none") else float(value)
        except ValueError:
            number = math.nan
        if number is not None and not number >= 0:  # nor NaN, which nothing keeps
            raise InputError(f"gate {name} is {value!r}; expected a number of 0 or more, or none.")
        values[name] = number
    return replace(gates, **values)  # type: ignore[arg-type]  # never `statistical`, which alone is a bool
