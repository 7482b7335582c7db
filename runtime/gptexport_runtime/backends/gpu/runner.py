"""Runs calls over device memory: ids are put there, small shapes are replayed from captured graphs, outputs fetched.

A captured graph may be silently wrong: whatever a kernel took from the host is repeated as it was. So the first replays
are compared with runs without, and where one differs, or fails, the session goes on without captured graphs.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.captured import (
    CAPTURED_TOKENS,
    COMPARED,
    Captured,
    CapturedShapes,
    Key,
    Recording,
)
from gptexport_runtime.backends.gpu.dlpack import Borrowed
from gptexport_runtime.backends.gpu.memory import ALIGNMENT, Buffer, DeviceMemory
from gptexport_runtime.backends.gpu.turns import TURNS
from gptexport_runtime.backends.output import Output
from gptexport_runtime.errors import ExecutionError

TOLERANCE = 1e-2  # of the largest |value|, between a replay and a run without: garbage, not another order of the sums

FETCHED = 32 << 20  # bytes that are fetched before their floats are widened: a few of the copies' own buffers

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Call(ABC):
    """What to compute, and by what library.

    feed: int64 inputs by name, contiguous and on the host; or a single one that is borrowed, and on the device.
    output: how it lies in memory.
    repeats: calls of this shape may come again, and a captured graph serve them.
    """

    feed: Mapping[str, Ids | Borrowed]
    output: Output
    repeats: bool = True

    @abstractmethod
    def run(self, inputs: int, output: int) -> None:
        """Read the feed, one input after the other from `inputs`, and write to `output`. Returns when that is done."""

    @abstractmethod
    def record(self, inputs: int, output: int, number: int) -> Recording:
        """Make what repeats the call at these addresses.

        Raises:
            ExecutionError: it cannot be captured.
        """

    @property
    def key(self) -> Key:
        """Equal for calls that one captured graph can serve."""
        return tuple(value.shape for value in self.feed.values())

    @property
    def feed_bytes(self) -> int:
        return 8 * sum(math.prod(value.shape) for value in self.feed.values())

    @property
    def ids_shape(self) -> tuple[int, ...]:
        """(B,T)."""
        return next(iter(self.feed.values())).shape


class DeviceRunner:
    """Runs the calls of one graph. Threads take turns."""

    def __init__(
        self,
        memory: DeviceMemory,
        *,
        captures: bool,
        captured_tokens: int = CAPTURED_TOKENS,
        required: bool = False,
        what: str,
        stopped: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            captures: captured graphs are possible.
            captured_tokens: of the largest call that is captured.
            required: they were asked for, so that it is an error where one goes wrong.
            what: names the graph in errors.
            stopped: called when the session goes on without captured graphs.
        """
        self.memory = memory
        self._captures, self._required, self._what, self._stopped = captures, required, what, stopped
        self._shapes = CapturedShapes(captured_tokens)
        self._inputs = memory.allocate(0)  # of calls that are not captured

    @property
    def captured_graphs(self) -> int:
        """How many were made."""
        return self._shapes.made

    def compute(self, call: Call, out: Floats) -> None:
        """Into an array on the host, of the output's shape.

        Raises:
            ExecutionError: the library or CUDA failed.
        """
        with TURNS:
            captured = self._replay(call)
            output = self._run(call) if captured is None else captured.output
            self._fetch(call.output, output, out)

    def compute_on_device(self, call: Call) -> Buffer:
        """Into device memory that is the caller's own. Raises: as `compute`."""
        with TURNS:
            captured = self._replay(call)
            if captured is None:
                return self._run(call)
            own = self.memory.allocate(call.output.nbytes)  # the next replay writes to the same memory
            self.memory.copies.within([(own.address, captured.output.address, call.output.nbytes)])
            return own

    def _run(self, call: Call) -> Buffer:
        output = self.memory.allocate(call.output.nbytes)
        first = next(iter(call.feed.values()))
        if isinstance(first, Borrowed) and first.address % ALIGNMENT == 0:
            call.run(first.address, output.address)
            return output
        if call.feed_bytes > self._inputs.size:
            self._inputs = self.memory.allocate(call.feed_bytes)
        self._put(call, self._inputs)
        call.run(self._inputs.address, output.address)
        return output

    def _replay(self, call: Call) -> Captured | None:
        """The captured graph that has computed the call; None where it has to be run."""
        if not self._captures or not call.repeats:
            return None
        try:
            captured = self._shapes.find(
                call.key, math.prod(call.ids_shape), lambda number: self._capture(call, number)
            )
            if captured is None:
                return None
            self._put(call, captured.inputs)
            if captured.compared <= COMPARED:
                self._compare(call, captured)
            else:
                captured.recording.replay()
        except _CaptureFailed as error:
            self._stop(str(error))
            return None
        return captured

    def _capture(self, call: Call, number: int) -> Captured:
        inputs, output = self.memory.allocate(call.feed_bytes), self.memory.allocate(call.output.nbytes)
        self._put(call, inputs)  # recording may run the call
        try:
            return Captured(inputs, output, call.record(inputs.address, output.address, number))
        except ExecutionError as error:
            raise _CaptureFailed(str(error)) from error

    def _compare(self, call: Call, captured: Captured) -> None:
        """Replay, and run without; both must say the same."""
        shape = call.output.shape
        replayed, expected = np.empty(shape, np.float32), np.empty(shape, np.float32)
        try:
            captured.recording.replay()
            self._fetch(call.output, captured.output, replayed)
            captured.recording.run()
        except ExecutionError as error:
            raise _CaptureFailed(str(error)) from error
        self._fetch(call.output, captured.output, expected)
        captured.compared += 1
        allowed = TOLERANCE * float(np.abs(expected).max())
        difference = float(np.abs(replayed - expected).max())  # NaN where one of them is
        if not difference <= allowed:
            raise _CaptureFailed(f"a replay is off by {difference:.2g}")

    def _fetch(self, output: Output, buffer: Buffer, out: Floats) -> None:
        """What counts of `output`, which lies in `buffer`, into `out`."""
        if output.is_plain:
            self.memory.copies.download(buffer.address, out)
            return
        length = output.written[-1]
        rows = out.reshape(-1, out.shape[-1])
        at_once = max(1, FETCHED // (length * output.kind.bytes))
        held = np.empty((min(at_once, len(rows)), length), output.kind.stored)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            part = held[: len(some)]
            self.memory.copies.download(buffer.address + start * length * output.kind.bytes, part)
            output.take(part, some)

    def _stop(self, reason: str) -> None:
        what = f"{self._what} goes on without CUDA graphs: {reason}"
        if self._required:
            raise ExecutionError(f"{what} They were asked for: CudaOptions(graphs=True).")
        warnings.warn(what, RuntimeWarning, stacklevel=2)
        self._captures = False
        self._shapes = CapturedShapes()  # none will be
        self._stopped()

    def _put(self, call: Call, inputs: Buffer) -> None:
        """The feed, one input after the other, into `inputs`."""
        first, *others = call.feed.values()
        if isinstance(first, Borrowed):
            self.memory.copies.within([(inputs.address, first.address, call.feed_bytes)])
        else:
            arrays = [first, *(other for other in others if not isinstance(other, Borrowed))]
            self.memory.copies.upload(inputs.address, np.concatenate([array.reshape(-1) for array in arrays]))


class _CaptureFailed(Exception):
    """A captured graph failed, or is wrong."""
