"""What a target is. To add one, write a file with a `Target` and its line in TARGETS; nothing else asks its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptexport.precision import Precision
from gptexport_runtime.contract.heads import Head

if TYPE_CHECKING:
    from gptexport.export.cached import Attend
    from gptexport.export.cached_in_8_bits import Scales
    from gptexport.export.rewrites import Audit, Rewrite
    from gptexport.export.trace import Trace

Kernels = dict[str, list[str]]  # by operator, the names of kernels


def _scatter(_precision: Precision) -> Attend:
    from gptexport.export.cached import scatter_and_mask

    return scatter_and_mask


def _nothing(_trace: Trace, _precision: Precision) -> Audit:
    return {}


def _no_rewrites(_precision: Precision) -> Sequence[Rewrite]:
    return ()


def _no_check(_path: Path, _head: Head) -> None:
    return None


def _no_kernels(_precision: Precision, _head_sizes: Collection[int]) -> Kernels:
    return {}


def _anywhere(precision: Precision) -> tuple[str, ...]:
    return ("cpu", "cuda") if precision.runs_on_cpu else ("cuda",)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target. What is not given is the portable graph's."""

    name: str
    help: str  # what it is, for --help
    takes: Callable[[Precision], bool]  # whether its graphs can compute in a precision
    min_opset: int = 18
    runs_on: Callable[[Precision], tuple[str, ...]] = _anywhere  # devices that have kernels for its graphs
    prepare: Callable[[Trace, Precision], Audit] = _nothing  # changes graph and weights, before heads are derived
    attend: Callable[[Precision], Attend] = _scatter  # how a cached step writes and reads its cache
    attend_in_8_bits: Callable[[Scales], Attend] | None = None  # the same, over a cache in 8 bits; None: not there
    rewrites: Callable[[Precision], Sequence[Rewrite]] = _no_rewrites  # of each head's graph, in this order
    cached_on_cpu: bool = False  # heads with a cache run on ONNX Runtime's CPU provider, in float32
    score_chunk: int = 256  # positions whose logits `score` holds at a time, in a loop
    score_parts: int = 0  # into at most how many parts of at least so many `score` cuts them instead, without a loop
    lays_out_logits: Callable[[Precision], bool] = lambda _precision: False  # pad_vocab, native_logits
    check: Callable[[Path, Head], None] = _no_check  # raises ExportError for a written graph that it cannot run
    checked: Callable[[], str] | None = None  # what `check` has made sure of, in words
    note: Callable[[Precision], str | None] = lambda _precision: None  # what a person who exports for it should be told
    expected_kernels: Callable[[Precision, Collection[int]], Kernels] = _no_kernels  # for attention, by sizes of heads

    def runs_on_cpu(self, precision: Precision) -> bool:
        return "cpu" in self.runs_on(precision)

    def __str__(self) -> str:
        return self.name
