"""Ids that a forward may treat specially: it masks padding, begins a document, leaves a logit out.

Uniform draws from a vocabulary of 50,257 never show what happens to them. Here they fill rows, begin and end them, and
part documents; the session must say what the checkpoint says, NaN and -Inf at the very same places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from gptexport.checkpoints import Checkpoint
from gptexport.parity.measure.invariances import Accepts
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.measure.shapes import Shape, choose_shape
from gptexport.parity.measure.tokens import TokenSource

LONGEST = 17  # tokens of a row: what is special shows in few
MOST_IDS = 8


def special_batches(
    source: TokenSource, special: Collection[int], shapes: Sequence[Shape], accepts: Accepts
) -> list[Ids]:
    """The rows of `special_rows` in batches of one shape that the session runs at."""
    B, T = choose_shape(shapes)
    T = LONGEST if T > LONGEST and accepts(B, LONGEST) else T
    rows = special_rows(source, special, T)
    return list(np.concatenate([rows, rows[: -len(rows) % B]]).reshape(-1, B, T))


def ids_of_text(checkpoint: Checkpoint) -> set[int]:
    """What the checkpoint says to begin, end and pad a text, and the last id that goes in."""
    taken = checkpoint.input_vocab_size or checkpoint.vocab_size
    return {i for i in (taken - 1, *checkpoint.text.special_ids) if i < taken}


def special_rows(source: TokenSource, special: Collection[int], T: int) -> Ids:
    """Of each id four rows of T tokens: of that id alone, one that begins and one that ends with it, and one document
    twice, parted by it."""
    ids = special_ids(source, special)
    return np.stack(list(_rows(ids, source.batch((4 * len(ids), T), seed=3))))


def special_ids(source: TokenSource, special: Collection[int]) -> list[int]:
    """Those that are known to be special, and the first and the last."""
    return list(dict.fromkeys([0, max([source.vocab_size - 1, *special]), *sorted(special)]))[:MOST_IDS]


def _rows(ids: Sequence[int], filler: Ids) -> Iterator[Ids]:
    """See `special_rows`. `filler` (4 × ids, T) is overwritten."""
    T = filler.shape[1]
    for number, special in enumerate(ids):
        whole, begins, ends, parted = filler[4 * number : 4 * number + 4]
        whole[:] = special
        begins[: max(1, T // 3)] = special
        ends[-max(1, T // 3) :] = special
        document = parted[: max(1, (T - 1) // 2)].copy()
        parted[len(document) : len(document) + 1] = special
        second = parted[len(document) + 1 :]
        second[: len(document)] = document[: len(second)]
        yield from (whole, begins, ends, parted)
