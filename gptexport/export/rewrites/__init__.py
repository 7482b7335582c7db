"""Passes over a graph, one screen each. A pass says what must hold before and after it, and counts what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from gptexport.recipe import Limits

Audit = dict[str, dict[str, int]]  # by what was to be made: how many were "expected", and how many "achieved"


@dataclass(frozen=True)
class Rewrite:
    """A pass that leaves the function as it is. `apply` changes the graph in place and returns its audit."""

    name: str
    apply: Callable[[ir.Graph, Limits], Audit]
    on_cpu: bool = True  # also of a head that runs on ONNX Runtime's CPU provider, whatever the target


def counted(op: str, expected: int, achieved: int) -> Audit:
    """One row of an audit; none where nothing was to be done."""
    return {op: {"expected": expected, "achieved": achieved}} if expected else {}
