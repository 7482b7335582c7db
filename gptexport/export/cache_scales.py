"""How keys and values round to 8 bits, found on text that a `decode` graph writes itself, and what that loses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gptexport.errors import ExportError
from gptexport.export.cached_in_8_bits import LARGEST, Scales
from gptexport.recipe import Limits
from gptexport.teacher_forcing import feed_pieces
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.decoder import OrtDecoder
from gptexport_runtime.backends.ort.host import HostStore
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.contract.heads import DECODE
from gptexport_runtime.contract.names import past_names
from gptexport_runtime.generate.cache import Cache

Ids = NDArray[np.int64]

ROWS, LENGTH = 4, 256  # of text by which scales are found, and of as much by which they are judged
ROOM = 1.25  # as a multiple of the largest key or value that was seen: what is beyond it is cut
DULLEST = 1e-3  # of a head's loudest channel: no channel is rounded more finely, or one that was silent would be cut


@dataclass(frozen=True)
class OwnText:
    """What a model wrote, and the scales of its keys and values while it did."""

    scales: Scales
    judged: Ids  # (ROWS,T), not of the text by which the scales were found


def write_text(graph: Path, limits: Limits) -> OwnText:
    """Draw text of the model's own, token by token.

    Args:
        graph: `decode`, with a cache in float32.

    Raises:
        ExportError: keys or values are not finite.
    """
    decoder, draw = _open(graph), np.random.default_rng(0)
    T = min(LENGTH, limits.block_size)
    memory = decoder.allocate(2 * ROWS, T)
    ids = np.empty((2 * ROWS, T), np.int64)
    ids[:, 0] = draw.integers(0, limits.vocab_size, len(ids))
    with Cache(decoder, len(ids), T, decoder.info.vocab_size, memory=memory) as cache, cache.in_use():
        for t in range(T):
            logits = cache.feed(list(ids[:, t : t + 1]))[:, : limits.vocab_size]
            if t + 1 < T:
                ids[:, t + 1] = np.argmax(logits + draw.gumbel(size=logits.shape), axis=-1)
    assert isinstance(memory.store, HostStore)
    # values (2, n_layer, rows, n_kv_head, T, head_size)
    peaks = np.abs(memory.store.values[:, :, :ROWS]).max(axis=(2, 4))
    if not np.isfinite(peaks).all():
        raise ExportError("its keys or values are not finite")
    loudest = np.maximum(peaks.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    scales = np.maximum(peaks, DULLEST * loudest) * np.float32(ROOM / LARGEST)
    layers = range(scales.shape[1])
    by_name = {name: scales[side, layer] for layer in layers for side, name in enumerate(past_names(layer))}
    return OwnText(by_name, ids[ROWS:])


def divergence(wide: Path, narrow: Path, ids: Ids) -> float:
    """The mean KL divergence, in nats, of one `decode` graph's predictions from another's.

    Each reads the first half of ids (B,T) as prompts, and the rest token by token.
    """
    (B, T), decoders = ids.shape, [_open(wide), _open(narrow)]
    ends = [np.full(B, end) for end in range(max(1, T // 2), T + 1)]
    pieces = [feed_pieces(Cache(each, B, T, each.info.vocab_size), list(ids), ends) for each in decoders]
    found = []
    for (_, expected), (_, actual) in zip(*pieces, strict=True):
        p, q = (torch.log_softmax(torch.from_numpy(logits).double(), dim=-1) for logits in (expected, actual))
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(found) / len(found)


def _open(graph: Path) -> OrtDecoder:
    return OrtBackend(CPU, {DECODE.name: graph}).open_decoder(DECODE)
