"""An ONNX Runtime session whose inputs and output are bound to a place, and the CUDA graphs of shapes that come again.

A CUDA graph is a recording of one shape's work at fixed addresses, which one launch repeats: small shapes spend most of
their time in launching kernels. ONNX Runtime records when a run has a new `gpu_graph_id`: it runs twice to warm up, a
third time to capture, and replays (InferenceSession::RunImpl, CUDAExecutionProvider::OnRunEnd), all of which computes
the same. What this makes of it:

- A shape that comes once runs without. Large ones always do: their kernels take longer than launching them.
- ONNX Runtime keeps graphs for each thread (PerThreadContext) and never frees one before the session, so there is a
  number of them that a session makes, and none is replaced.
- A recording may be silently wrong: whatever a kernel took from the host is repeated as it was. So the first replays
  are compared with runs without, and where one differs, or fails, the session is opened anew without graphs.
- A recording reads and writes the arena's memory, so a session that has one never shrinks it.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import Borrowed
from gptexport_runtime.backends.gpu.memory import TURNS, Block, Place
from gptexport_runtime.backends.ort.cuda_options import GRAPH_ID, NO_GRAPH, SHRINK, CudaOptions
from gptexport_runtime.backends.ort.providers import first_line, import_onnxruntime
from gptexport_runtime.errors import ExecutionError

CAPTURED_TOKENS = 256  # B×T of a call up to which launching kernels is most of the time
MOST_GRAPHS = 16  # that a session makes
REMEMBERED = 64  # shapes that came once
PROOFS = 2  # replays that are compared with a run without, beside the first
PROOF_TOLERANCE = 1e-2  # of the largest |value|: garbage, not another order of the same sums
SMALL = 4  # a call is small where it needs this much less than the largest

Ids = NDArray[np.int64]
Key = tuple[Any, ...]


@dataclass
class _Fixed:
    """One captured shape: memory that its graph reads and writes, always the same."""

    number: int  # ONNX Runtime's gpu_graph_id
    inputs: Block
    output: Block
    binding: Any
    unproved: int = PROOFS + 1


class Rest(Protocol):
    """What else a call binds: a cache, in and out."""

    @property
    def key(self) -> Key: ...  # equal where addresses and shapes are
    def binding(self, session: Any, *, own: bool) -> Any: ...  # ONNX Runtime's, with it bound; `own`: nobody else's


@dataclass(frozen=True, eq=False)
class Call:
    """What to compute. `feed`: int64 inputs by name, contiguous and on the host; or a single one where the place is."""

    feed: Mapping[str, Ids | Borrowed]
    output: str
    shape: tuple[int, ...]  # of the output, float32
    rest: Rest | None = None
    captures: bool = True  # worth a CUDA graph, where the shape comes again and is small

    @property
    def size(self) -> int:
        """Bytes of the output."""
        return 4 * math.prod(self.shape)

    @property
    def feed_size(self) -> int:
        return 8 * sum(math.prod(value.shape) for value in self.feed.values())

    @property
    def tokens(self) -> int:
        return math.prod(next(iter(self.feed.values())).shape)

    @property
    def key(self) -> Key:
        return (*(value.shape for value in self.feed.values()), self.rest.key if self.rest else ())


@dataclass
class _Seen(threading.local):
    """Of one thread, as ONNX Runtime's own graphs are: shapes that came, and those that are captured."""

    once: set[Key] = field(default_factory=set)
    fixed: dict[Key, _Fixed] = field(default_factory=dict)


class Bound:
    """A session bound to a place. Threads take turns."""

    def __init__(
        self, open_session: Callable[[bool], Any], place: Place, options: CudaOptions, *, graphs: bool, what: str
    ) -> None:
        """Open the session; `open_session(graphs)` does, with CUDA graphs or without.

        Args:
            graphs: the graph is of a kind that can be captured.
            what: names it in errors.
        """
        self.place = place
        self.graphs, self.session = _open(open_session, options.graphs, graphs)
        self._open, self._options, self._what = open_session, options, what
        self._inputs = place.allocate(0)
        self._seen = _Seen()
        self._made = 0  # graphs, in all threads
        self._runs: dict[tuple[int, bool], Any] = {}  # ONNX Runtime's RunOptions
        self._largest = self._small = 0

    def compute(self, call: Call, out: NDArray[np.float32]) -> None:
        """Into an array of the host's, of the output's shape.

        Raises:
            ExecutionError: ONNX Runtime or CUDA failed.
        """
        with TURNS:
            block = self._compute(call)  # held until it is copied
            self.place.download(block.address, out)

    def compute_here(self, call: Call) -> Block:
        """Into memory of the place that is the caller's own. Raises: as `compute`."""
        with TURNS:
            block = self._compute(call)
            if any(block is fixed.output for fixed in self._seen.fixed.values()):  # the next replay writes there
                own = self.place.allocate(call.size)
                self.place.copy([(own.address, block.address, call.size)])
                return own
            return block

    def read(self, ids: Borrowed) -> Ids:
        """Borrowed ids, copied to the host."""
        host = np.empty(ids.shape, np.int64)
        self.place.download(ids.address, host)
        return host

    def _compute(self, call: Call) -> Block:
        fixed = self._fixed(call) if self.graphs else None
        if fixed is None:
            return self._once(call)
        self._put(call.feed, fixed.inputs)
        if fixed.unproved:
            reason = self._prove(call, fixed)
            if reason is not None:
                self._stop_graphs(reason)
                return self._once(call)
        else:
            self._run(fixed.binding, call, fixed.number)
        return fixed.output

    def _once(self, call: Call) -> Block:
        output = self.place.allocate(call.size)
        first = next(iter(call.feed.values()))
        if isinstance(first, Borrowed):
            at = first.address
        else:
            if call.feed_size > self._inputs.size:
                self._inputs = self.place.allocate(call.feed_size)
            self._put(call.feed, self._inputs)
            at = self._inputs.address
        self._run(self._bind(call, at, output, own=False), call, NO_GRAPH)
        return output

    def _fixed(self, call: Call) -> _Fixed | None:
        """The graph of a small shape that came before; None where there is and will be none."""
        seen, key = self._seen, call.key
        if key in seen.fixed or not call.captures or call.tokens > CAPTURED_TOKENS:
            return seen.fixed.get(key)
        if key not in seen.once or self._made >= MOST_GRAPHS:
            if len(seen.once) >= REMEMBERED:
                seen.once.clear()
            seen.once.add(key)
            return None
        self._made += 1
        inputs, output = self.place.allocate(call.feed_size), self.place.allocate(call.size)
        binding = self._bind(call, inputs.address, output, own=True)
        seen.fixed[key] = _Fixed(self._made, inputs, output, binding)
        return seen.fixed[key]

    def _prove(self, call: Call, fixed: _Fixed) -> str | None:
        """Replay, and run without; None where both say the same, else what went wrong."""
        replayed, expected = np.empty(call.shape, np.float32), np.empty(call.shape, np.float32)
        try:
            self._run(fixed.binding, call, fixed.number)
            self.place.download(fixed.output.address, replayed)
            self._run(fixed.binding, call, NO_GRAPH)
        except ExecutionError as error:
            return str(error)
        self.place.download(fixed.output.address, expected)
        fixed.unproved -= 1
        allowed = PROOF_TOLERANCE * float(np.abs(expected).max())
        difference = float(np.abs(replayed - expected).max())  # NaN where one of them is
        return None if difference <= allowed else f"a replay is off by {difference:.2g}"

    def _stop_graphs(self, reason: str) -> None:
        told = f"{self._what} goes on without CUDA graphs: {reason}"
        if self._options.graphs:
            raise ExecutionError(f"{told} They were asked for: CudaOptions(graphs=True).")
        warnings.warn(told, RuntimeWarning, stacklevel=2)
        self.graphs, self._made = False, 0
        self._seen = _Seen()
        self._runs.clear()
        self.session = self._open(False)  # what a failed capture leaves behind is in the old one

    def _put(self, feed: Mapping[str, Ids | Borrowed], inputs: Block) -> None:
        """The feed, one input after the other, into `inputs`."""
        first, *others = feed.values()
        if isinstance(first, Borrowed):
            self.place.copy([(inputs.address, first.address, 8 * math.prod(first.shape))])
        else:
            arrays = [first, *(other for other in others if not isinstance(other, Borrowed))]
            self.place.upload(inputs.address, np.concatenate([array.reshape(-1) for array in arrays]))

    def _bind(self, call: Call, at: int, output: Block, *, own: bool) -> Any:
        """ONNX Runtime's binding of the feed, which lies one after the other from `at`; the output; and the rest."""
        binding = call.rest.binding(self.session, own=own) if call.rest else self.session.io_binding()
        for name, value in call.feed.items():
            binding.bind_input(name, self.place.device, 0, np.int64, value.shape, at)
            at += 8 * math.prod(value.shape)
        binding.bind_output(call.output, self.place.device, 0, np.float32, call.shape, output.address)
        return binding

    def _run(self, binding: Any, call: Call, number: int) -> None:
        try:
            self.session.run_with_iobinding(binding, self._run_options(number, self._shrinks(call.tokens)))
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            B, T = next(iter(call.feed.values())).shape
            raise ExecutionError(
                f"{self._what} failed on {self.place.device} at B={B}, T={T}: {first_line(error)}."
            ) from error

    def _shrinks(self, tokens: int) -> bool:
        """Whether this run gives the arena's unused memory back: enough small ones followed a large one."""
        if self._options.shrink_after is None or self._made:
            return False
        self._small = self._small + 1 if SMALL * tokens <= self._largest else 0
        self._largest = max(self._largest, tokens)
        if self._small < self._options.shrink_after:
            return False
        self._largest, self._small = tokens, 0
        return True

    def _run_options(self, number: int, shrinks: bool) -> Any:
        if (number, shrinks) not in self._runs:
            options = import_onnxruntime().RunOptions()
            if self.graphs:
                options.add_run_config_entry(GRAPH_ID, str(number))
            if shrinks:
                options.add_run_config_entry(SHRINK, "gpu:0" if self.place.device == "cuda" else "cpu:0")
            self._runs[number, shrinks] = options
        return self._runs[number, shrinks]


def _open(open_session: Callable[[bool], Any], wanted: bool | None, possible: bool) -> tuple[bool, Any]:
    """Whether with CUDA graphs, and the session. ONNX Runtime refuses them for Loops, and for nodes on the CPU."""
    if wanted is False or not possible:
        return False, open_session(False)
    try:
        return True, open_session(True)
    except Exception:
        if wanted:
            raise
        return False, open_session(False)
