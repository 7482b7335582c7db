"""A few cases of many: the rest are marked slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], quick: int) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: the first `quick` as they are, those after them slow."""
    marked = []
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=() if number < quick else pytest.mark.slow))
    return marked
