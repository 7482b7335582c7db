"""What a graph may return. Each head is defined here once, in numpy, from all logits.

An export checks its graphs against these definitions, parity compares with them, and a session without the graph
computes them. To add a head, write a `Head` and put it into HEADS; the exporter has the graph that computes it directly
(gptexport/export/heads).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.contract import names
from gptexport_runtime.contract.names import (
    AXIS_B,
    AXIS_SCORED,
    AXIS_T,
    AXIS_V,
    INPUT_IDS,
    LENGTHS,
    LOGPROBS,
    PAST_LENGTHS,
)

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Signature:
    """A graph's interface: names and axes. Inputs are int64, the output float32.

    B, T and T-1 are free; V, and any other axis of the output, is a number in the file.

    That of `decode` leaves out the cache, whose tensors come after these: see `past_names` and `present_names`.
    """

    inputs: Mapping[str, tuple[str, ...]]
    output: str
    output_axes: tuple[str, ...]

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} tensor(int64) [{','.join(axes)}]" for name, axes in self.inputs.items())
        return f"{inputs} -> {self.output} tensor(float) [{','.join(self.output_axes)}]"


@dataclass(frozen=True, kw_only=True)
class Head:
    """A kind of graph over the same weights."""

    name: str
    signature: Signature
    from_logits: Callable[[Floats, Ids, Ids], Floats]
    """Its output by definition: of logits (B,T,V), ids (B,T) and lengths (B), each row's number of real tokens."""
    loops: bool = False  # has a Loop: cannot be captured as a CUDA graph, and needs no plan of its memory
    as_computed: bool = False  # its graph may write 16-bit floats, and rows that are longer than V: see META_ROW
    cached: bool = False  # continues the text in a key-value cache, whose tensors follow those of the signature

    @property
    def file(self) -> str:
        """In a bundle."""
        return f"{self.name}.onnx"

    def hide_padding(self, out: NDArray[np.floating], lengths: Ids) -> None:
        """Put NaN past each row's end, so that what the padding gave is never mistaken for an output.

        Args:
            out: the head's output, with B rows.
            lengths: (B).
        """
        at_each = self.signature.output_axes[1:2]
        if at_each in ((AXIS_T,), (AXIS_SCORED,)):
            beyond = 0 if at_each == (AXIS_T,) else 1
            for row, length in zip(out, lengths, strict=True):
                row[length - beyond :] = np.nan

    def __str__(self) -> str:
        return self.name


def last_logits(logits: Floats, _ids: Ids, lengths: Ids) -> Floats:
    """(B,V): the logits of each row's last real token."""
    return logits[np.arange(len(logits)), lengths - 1]


def next_token_logprobs(logits: Floats, ids: Ids, _lengths: Ids) -> Floats:
    """(B,T-1): the natural log of p(ids[b,t+1] | ids[b,:t+1]), computed in float64."""
    out = np.empty((ids.shape[0], ids.shape[1] - 1), np.float32)
    for row, row_logits, row_ids in zip(out, logits, ids, strict=True):
        wide = row_logits[:-1].astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        picked = np.take_along_axis(wide, row_ids[1:, None], axis=-1)[:, 0]
        row[:] = picked - np.log(np.exp(wide).sum(axis=-1))
    return out


LOGITS = Head(
    name="logits",
    signature=Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, names.LOGITS, (AXIS_B, AXIS_T, AXIS_V)),
    from_logits=lambda logits, _ids, _lengths: logits,
    as_computed=True,
)
LAST = Head(
    name="last",
    signature=Signature({INPUT_IDS: (AXIS_B, AXIS_T), LENGTHS: (AXIS_B,)}, names.LOGITS, (AXIS_B, AXIS_V)),
    from_logits=last_logits,
)
SCORE = Head(
    name="score",
    signature=Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, LOGPROBS, (AXIS_B, AXIS_SCORED)),
    from_logits=next_token_logprobs,
    loops=True,
)
DECODE = Head(
    name="decode",
    signature=Signature(
        {INPUT_IDS: (AXIS_B, AXIS_T), LENGTHS: (AXIS_B,), PAST_LENGTHS: (AXIS_B,)}, names.LOGITS, (AXIS_B, AXIS_V)
    ),
    from_logits=last_logits,
    cached=True,
)
# in the order they are written: the first decides where weights lie in the file
HEADS = {head.name: head for head in (LOGITS, LAST, SCORE, DECODE)}
