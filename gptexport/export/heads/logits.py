"""The head `logits`: the graph as it was traced, but for the form that its output is asked for in."""

from __future__ import annotations

from dataclasses import replace

from gptexport.export.trace import Trace
from gptexport.recipe import Recipe


def build(logits: Trace, recipe: Recipe) -> Trace:
    """input_ids (B,T) -> logits (B,T,V) float32. No copy: the graph itself.

    A copy, where the recipe asks for logits as they are computed: (B,T,row), in the precision's own floats.
    """
    if not recipe.pad_vocab and not recipe.native_logits:
        return replace(logits)
    from gptexport.export.rewrites.pad_vocab import drop_cast, drop_cut

    trace = replace(logits, model=logits.model.clone())
    if recipe.pad_vocab:
        drop_cut(trace)
    if recipe.native_logits:
        drop_cast(trace)
    return trace
