"""ONNX Runtime runs a graph that continues rows of text in a cache: the head `decode`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gptexport_runtime.backends.ort.binding import Binding, Runner
from gptexport_runtime.backends.ort.cache import OrtCache
from gptexport_runtime.backends.ort.signature import read_signature
from gptexport_runtime.backends.output import FLOAT_TYPES
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.names import past_names, present_names
from gptexport_runtime.errors import ArtifactError

# by ONNX Runtime's name: the numpy type that holds keys and values, and what they are bound as
CACHE_TYPES: dict[str, tuple[type[np.generic], Any]] = {
    **{name: (kind.stored, kind.element) for name, kind in FLOAT_TYPES.items()},
    "tensor(int8)": (np.int8, np.int8),  # with scales in the graph
}


class OrtDecoder:
    """See base.Decoder."""

    def __init__(
        self,
        runner: Runner,
        binding: Binding,
        path: Path,
        head: Head,
        tokens_at_once: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises ArtifactError once the weights are not what they were."""
        self.info = read_signature(runner.session, path, head).info
        self.runner = runner
        self.output = head.signature.output
        self.tokens_at_once = tokens_at_once
        self.check = check
        self._binding = binding
        self._n_layer, self._n_head, self._head_size, kind = _read_cache(runner.session, path, head)
        self.dtype, self.element = CACHE_TYPES[kind]

    def allocate(self, rows: int, capacity: int) -> OrtCache:
        """Zeroed memory for the keys and values of `rows` rows of up to `capacity` tokens."""
        capacity = self._binding.round_capacity(capacity)
        shape = (2, self._n_layer, rows, self._n_head, capacity, self._head_size)
        return OrtCache(self, shape, self._binding.allocate(shape, self.dtype))


def _read_cache(session: Any, path: Path, head: Head) -> tuple[int, int, int, str]:
    """n_layer, n_head, head_size and the type of the cache that the graph takes.

    Raises:
        ArtifactError: it is not the contract's.
    """
    inputs, outputs = session.get_inputs()[len(head.signature.inputs) :], session.get_outputs()[1:]
    layers = len(inputs) // 2
    got = [value.name for value in (*inputs, *outputs)]
    expected = [name for names in (past_names, present_names) for layer in range(layers) for name in names(layer)]
    sizes = {(*(value.shape[i] for i in (1, 3)), value.type) for value in (*inputs, *outputs) if len(value.shape) == 4}
    if got != expected or len(sizes) != 1:
        raise ArtifactError(f"{path} has no cache that this version knows: {', '.join(got) or 'none'}. Export again.")
    ((n_head, head_size, kind),) = sizes
    if not isinstance(n_head, int) or not isinstance(head_size, int) or kind not in CACHE_TYPES:
        raise ArtifactError(f"{path} has a cache of {kind} ({n_head}, S, {head_size}); expected numbers. Export again.")
    return layers, n_head, head_size, kind
