"""Which graphs a bundle gets: all that the forward allows, made from the one that was traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gptexport.errors import ExportError
from gptexport.export.decode import decode_graph
from gptexport.export.heads import SCORE_CHUNK, last_graph, score_graph
from gptexport.export.trace import Trace
from gptexport_runtime.contract import heads

# in the order they are written: the first decides where weights lie in the file
DERIVED: dict[str, Callable[[Trace], Trace]] = {
    heads.LOGITS.name: lambda logits: logits,
    heads.LAST.name: last_graph,
    heads.SCORE.name: score_graph,
    heads.DECODE.name: decode_graph,
}


def derive_graphs(
    logits: Trace, kinds: Sequence[str] | None, *, score_chunk: int = SCORE_CHUNK
) -> tuple[dict[str, Trace], dict[str, str]]:
    """The graphs asked for, made from the logits graph. None: every kind that the forward allows.

    Args:
        score_chunk: positions whose logits the graph `score` holds at a time.

    Returns: the graphs, and of kinds that nobody asked for and that cannot be made, why.

    Raises:
        ExportError: a kind that was asked for by name cannot be made.
    """
    graphs, left_out = {}, {}
    every: dict[str, Callable[[Trace], Trace]] = {
        **DERIVED,
        heads.SCORE.name: partial(score_graph, chunk_size=score_chunk),
    }
    for kind, derive in every.items():
        if kinds is not None and kind not in kinds:
            continue
        try:
            graphs[kind] = derive(logits)
        except ExportError as error:
            if kinds is not None:
                raise ExportError(f"the graph {kind} cannot be made: {error}. Leave {kind} out of --graphs.") from error
            left_out[kind] = str(error)
    return graphs, left_out
