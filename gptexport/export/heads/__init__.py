"""What a graph returns: each head of `gptexport_runtime.contract.heads` as a graph made from the logits graph.

A head's graph computes its definition, `Head.from_logits`, without computing what it does not return. All share the
weights; the model itself knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gptexport.export.heads import decode, last, logits, score
from gptexport.export.trace import Trace
from gptexport.recipe import Recipe
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.heads import Head


@dataclass(frozen=True)
class HeadGraph:
    """A head, and what makes its graph from the normalized logits graph.

    `build` does not change the graph that it gets, though it may return it, and raises ExportError where the forward
    does not allow the head.
    """

    head: Head
    build: Callable[[Trace, Recipe], Trace]


HEAD_GRAPHS = {
    found.head.name: found
    for found in (
        HeadGraph(heads.LOGITS, logits.build),
        HeadGraph(heads.LAST, last.build),
        HeadGraph(heads.SCORE, score.build),
        HeadGraph(heads.DECODE, decode.build),
    )
}
