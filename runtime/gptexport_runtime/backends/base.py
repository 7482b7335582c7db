"""What a backend gives a session."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Graph(Protocol):
    """A graph that is open. Arrays are validated and C-contiguous.

    `lengths` (B) goes to the graph `last` alone.
    """

    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dlpack_device(self) -> tuple[int, int]: ...
    @property
    def threads(self) -> int: ...
    def run(
        self, ids: NDArray[np.int64], out: NDArray[np.float32], lengths: NDArray[np.int64] | None = None
    ) -> None: ...
