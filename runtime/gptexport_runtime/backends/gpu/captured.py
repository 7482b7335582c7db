"""Which calls are repeated as captured graphs: small ones whose shape comes again.

A CUDA graph is a recording of one shape's work at fixed addresses, which one launch repeats: small shapes spend most of
their time in launching kernels. A shape that comes once runs without. Large ones always do: their kernels take longer
than launching them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gptexport_runtime.backends.gpu.memory import Buffer

# Tokens of a call (B×T) up to which launching kernels is most of the time; `CudaOptions.captured_tokens` is another. A
# guess: what settles it is the time of a call at 1×128 ... 1×1024 on a GPU, captured and not (scripts.gpu.check).
CAPTURED_TOKENS = 256
# Captured graphs of a session. None is replaced: ONNX Runtime frees them with the session and no sooner.
MOST_GRAPHS = 16
REMEMBERED = 64  # shapes that came once
# Replays that are compared with a run without, beside the first. A guess: what settles it is a check of many shapes on
# a GPU in which no replay is ever wrong.
COMPARED = 2

Key = tuple[object, ...]


class Recording(Protocol):
    """One call's work, over memory that stays the same. Both return when the output is there."""

    def replay(self) -> None: ...
    def run(self) -> None: ...  # without the captured graph


@dataclass
class Captured:
    """A captured shape, and the memory that its graph reads and writes."""

    inputs: Buffer
    output: Buffer
    recording: Recording
    compared: int = 0  # replays that were compared with a run without


class _Shapes(threading.local):
    """Shapes of one thread, as ONNX Runtime's own graphs are."""

    def __init__(self) -> None:
        self.once: set[Key] = set()
        self.captured: dict[Key, Captured] = {}


class CapturedShapes:
    """The captured graphs of a session. Threads take turns."""

    def __init__(self, tokens: int = CAPTURED_TOKENS) -> None:
        """`tokens`: of the largest call that is captured."""
        self.made = 0  # in all threads
        self._tokens = tokens
        self._shapes = _Shapes()

    def find(self, key: Key, tokens: int, capture: Callable[[int], Captured]) -> Captured | None:
        """The captured graph of a call of this shape; None where there is and will be none.

        Args:
            key: equal for calls that one graph can serve.
            tokens: of the call.
            capture: makes the graph; its number is another for each graph of the session, 1 or more.
        """
        shapes = self._shapes
        found = shapes.captured.get(key)
        if found is not None or tokens > self._tokens:
            return found
        if key not in shapes.once or self.made >= MOST_GRAPHS:
            if len(shapes.once) >= REMEMBERED:
                shapes.once.clear()
            shapes.once.add(key)
            return None
        self.made += 1
        shapes.captured[key] = capture(self.made)
        return shapes.captured[key]
