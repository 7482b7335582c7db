"""How keys and values round to 8 bits, found on text that a `decode` graph writes itself, and what that loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gptexport.errors import ExportError
from gptexport.export.cached_in_8_bits import LARGEST, Scales
from gptexport.export.rewrites.own_text import mean_kl
from gptexport.export.verify import special_ids
from gptexport.recipe import Limits
from gptexport.teacher_forcing import feed_pieces
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.cache import OrtCache
from gptexport_runtime.backends.ort.decoder import OrtDecoder
from gptexport_runtime.backends.ort.host import HostStore
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.contract.heads import DECODE
from gptexport_runtime.contract.names import past_names
from gptexport_runtime.generate.cache import Cache

Ids = NDArray[np.int64]

LENGTH = 256  # of each text that is written token by token
TOKENS = 1024  # of such text in all, by which scales are found; by as much they are judged
LONGEST = 4096  # positions that are seen; a longer context is taken to be like them
STEPS = 16  # single tokens in the middle and at the end of a row by which scales are judged
ROOM = 1.25  # as a multiple of the largest key or value that was seen: what is beyond it is cut
DULLEST = 1e-3  # of a head's loudest channel: no channel is rounded more finely, or one that was silent would be cut
SMALLEST_PEAK = 1e-20  # of a head that is silent: its scale is not subnormal

Rows = list[Ids]  # of token ids, of any lengths


@dataclass(frozen=True)
class OwnText:
    """What a model wrote, and the scales of its keys and values while it did."""

    scales: Scales
    judged: list[Rows]  # not of the text by which the scales were found


def write_text(graph: Path, limits: Limits) -> OwnText:
    """Draw text of the model's own, token by token, and see its keys and values, and those of rows made of it.

    A row as long as the context repeats the texts, so that late positions are seen, and ends in ids at random, so that
    rare tokens are. Padding and end tokens are seen in rows of their own.

    Args:
        graph: `decode`, with a cache in float32.

    Raises:
        ExportError: keys or values are not finite.
    """
    decoder, draw = _open(graph), np.random.default_rng(0)
    T, V = min(LENGTH, limits.block_size), limits.vocab_size
    rows = -(-TOKENS // T)
    ids, peaks = _write(decoder, 2 * rows, T, V, draw)
    halves = [list(ids[:rows]), list(ids[rows:])]
    longest = min(limits.block_size, LONGEST)
    special = special_ids(draw.integers(0, V, (5, min(7, limits.block_size))), V)
    long_rows = [_as_long(texts, longest, V, draw) for texts in halves]
    peaks = np.max([peaks, *(_peaks(decoder, seen) for seen in ([long_rows[0]], list(special)))], axis=0)
    if not np.isfinite(peaks).all():
        raise ExportError("its keys or values are not finite")
    loudest = np.maximum(peaks.max(axis=-1, keepdims=True), SMALLEST_PEAK)
    scales = np.maximum(peaks, DULLEST * loudest) * np.float32(ROOM / LARGEST)
    layers = range(scales.shape[1])
    by_name = {name: scales[side, layer] for layer in layers for side, name in enumerate(past_names(layer))}
    return OwnText(by_name, [halves[1], [long_rows[1]]])


def divergence(wide: Path, narrow: Path, texts: Sequence[Rows]) -> float:
    """The mean KL divergence, in nats, of one `decode` graph's predictions from another's, where it is worst.

    Each reads the first half of a text's rows as prompts, then some tokens one by one, and likewise at their end.
    """
    decoders = [_open(wide), _open(narrow)]
    groups = []
    for rows in texts:
        B, T = len(rows), len(rows[0])
        caches = [Cache(each, B, T, each.info.vocab_size) for each in decoders]
        for last in (max(1, T // 2), T):
            ends = [np.full(B, end) for end in range(max(1, last - STEPS), last + 1)]
            found = []
            for (_, expected), (_, actual) in zip(*(feed_pieces(each, rows, ends) for each in caches), strict=True):
                found.append(mean_kl(torch.from_numpy(expected), torch.from_numpy(actual)))
            groups.append(float(np.mean(found[1:] or found)))  # the first piece was read at once, in float32
    return float(np.max(groups))  # NaN stays NaN, which max() may lose


def _write(
    decoder: OrtDecoder, rows: int, T: int, vocab_size: int, draw: np.random.Generator
) -> tuple[Ids, NDArray[np.float32]]:
    """Texts (rows,T), and the peaks (2, n_layer, n_kv_head, head_size) of the first half's keys and values."""
    memory = decoder.allocate(rows, T)
    ids = np.empty((rows, T), np.int64)
    ids[:, 0] = draw.integers(0, vocab_size, rows)
    with Cache(decoder, rows, T, decoder.info.vocab_size, memory=memory) as cache, cache.in_use():
        for t in range(T):
            logits = cache.feed(list(ids[:, t : t + 1]))[:, :vocab_size]
            if t + 1 < T:
                ids[:, t + 1] = np.argmax(logits + draw.gumbel(size=logits.shape), axis=-1)
    return ids, _peaks_in(memory, rows // 2)


def _peaks(decoder: OrtDecoder, rows: Rows) -> NDArray[np.float32]:
    """The same of rows that are read at once."""
    memory = decoder.allocate(len(rows), len(rows[0]))
    cache = Cache(decoder, len(rows), len(rows[0]), decoder.info.vocab_size, memory=memory)
    with cache, cache.in_use():
        cache.feed(rows)
    return _peaks_in(memory, len(rows))


def _peaks_in(memory: OrtCache, rows: int) -> NDArray[np.float32]:
    """Of values (2, n_layer, rows, n_kv_head, S, head_size); one layer at a time, as they may be large."""
    assert isinstance(memory.store, HostStore)
    values: NDArray[np.float32] = memory.store.values[:, :, :rows]
    layers = [np.maximum(part.max(axis=(1, 3)), -part.min(axis=(1, 3))) for part in np.moveaxis(values, 1, 0)]
    return np.stack(layers, axis=1)


def _as_long(texts: Rows, length: int, vocab_size: int, draw: np.random.Generator) -> Ids:
    """A row of `length`: the texts again and again, then as many ids at random."""
    half = np.resize(np.concatenate(texts), length - length // 2)
    return np.concatenate([half, draw.integers(0, vocab_size, length // 2)])


def _open(graph: Path) -> OrtDecoder:
    return OrtBackend(CPU, {DECODE.name: graph}).open_decoder(DECODE)
