"""All that a session calls of a backend. Whatever answers this can run an artifact.

Arrays that are passed are validated and C-contiguous: ids (B,T) int64, lengths (B) int64 (each row's number of real
tokens, the rest is padding), outputs float32. Threads may share every object but a cache's memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.model import ModelInfo

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Graph(Protocol):
    """An open graph, of a head that needs no cache."""

    def output_shape(self, B: int, T: int) -> tuple[int, ...]: ...

    def run(self, ids: Ids, lengths: Ids, out: Floats) -> None:
        """Compute the head's output of ids (B,T) into `out`, which is `output_shape(B, T)`.

        Raises:
            InputError: the graph does not take (B,T).
            ExecutionError: the backend failed.
        """
        ...

    def run_on_device(self, ids: Ids | Borrowed) -> DeviceLogits:
        """Like `run`, and leave the output where it was computed. `Borrowed` ids are read where they are."""
        ...


class CacheMemory(Protocol):
    """Keys and values of some rows of text, where the graph that extends them runs. One call at a time."""

    def run(self, rows: slice, ids: Ids, lengths: Ids, past_lengths: Ids, out: Floats) -> None:
        """Append ids (B,T) to `rows`, which hold past_lengths (B) tokens each; the last tokens' logits into out (B,V).

        More than one token each is for rows that are all empty, or for a single row.

        Raises:
            ExecutionError: the backend failed.
        """
        ...

    def keep(self, rows: Ids, length: int) -> None:
        """Row i becomes what row rows[i] is, as far as `length` tokens; `rows` ascend."""
        ...

    def fork(self, rows: Ids, length: int) -> CacheMemory:
        """Memory of its own, with len(rows) rows, whose row i is row rows[i] here, as far as `length` tokens."""
        ...


class Decoder(Protocol):
    """An open graph, of a head that continues rows of text in a cache."""

    @property
    def tokens_at_once(self) -> int: ...  # of prompts, in one run

    def allocate(self, rows: int, capacity: int) -> CacheMemory:
        """Memory for `rows` empty rows of up to `capacity` tokens."""
        ...


class Backend(Protocol):
    """What runs an artifact. It frees what it holds with the last reference to it."""

    @property
    def name(self) -> str: ...  # "onnxruntime", "tensorrt" or "tensorrt-rtx"
    @property
    def device(self) -> str: ...  # what really runs: "cpu" or "cuda"
    @property
    def threads(self) -> int: ...  # of the CPU, for one call
    @property
    def tokens_at_once(self) -> int: ...  # B×T of one run: where rows are computed in pieces, pieces of about this
    @property
    def captured_graphs(self) -> int: ...  # CUDA graphs made so far

    def info(self) -> ModelInfo:
        """The limits that the logits graph tells. Raises: as `open`."""
        ...

    def has(self, head: Head) -> bool:
        """Whether there is a graph for it, to `open`, or to `open_decoder` if the head is cached."""
        ...

    def open(self, head: Head) -> Graph:
        """The graph of a head, which is opened when it is first asked for.

        Raises:
            BackendUnavailableError: the graph does not run on this device.
            ArtifactError: the file is damaged, or not a graph of that head.
        """
        ...

    def open_decoder(self, head: Head) -> Decoder:
        """Like `open`, for a head with a cache."""
        ...

    def borrow(self, ids: object) -> Borrowed | None:
        """`ids` where they are a tensor on this backend's device; else None.

        Raises:
            InputError: the tensor is not C-contiguous int64 (B,T).
        """
        ...

    def read(self, ids: Borrowed) -> Ids:
        """Borrowed ids, copied to the host to be checked there."""
        ...
