"""Calls that use the GPU take turns: those of all threads and sessions of the process.

ONNX Runtime captures CUDA graphs in the global mode (CUDAGraphManager::CaptureBegin): any allocation or waiting that
another thread asks the driver for meanwhile fails, and ends the capture.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class Turns:
    """A lock that its holder may take again, and that can be asked for without waiting."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        self._lock.release()

    @contextmanager
    def if_free(self) -> Iterator[bool]:
        """Take the turn if it is free, of this thread too, and say so. Never waits."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        self._depth += 1
        try:
            yield self._depth == 1
        finally:
            self._depth -= 1
            self._lock.release()


TURNS = Turns()
