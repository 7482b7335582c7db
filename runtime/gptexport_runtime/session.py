"""Open an exported GPT and run it: numpy in, numpy out, the same checks and errors on every backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.base import Graph
from gptexport_runtime.backends.gpu.dlpack import CUDA, Borrowed, DeviceLogits, borrow_ids
from gptexport_runtime.backends.ort import graph as ort
from gptexport_runtime.backends.ort.decode import OrtDecoder
from gptexport_runtime.backends.tensorrt import engine as trt
from gptexport_runtime.buffers import check_out
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.manifest import Manifest, ModelInfo
from gptexport_runtime.errors import BackendUnavailableError, InputError, SessionError
from gptexport_runtime.generate.cache import Cache
from gptexport_runtime.generate.sampling import Sampling
from gptexport_runtime.generate.stream import ENDED, Limits, stream_tokens
from gptexport_runtime.inputs import Batch, check_predicted, to_batch
from gptexport_runtime.score import Scores, logprobs_of


class Session:
    """An open model; `load` makes one. Threads may share it, and take turns on a GPU. A forked child must open its own.

    `logits`, `last_logits`, `score` and `generate` each have a graph, opened when first used, with its own packed
    weights (`prepack=False` shares the mapped file instead). A bundle without the second or third gives the same
    numbers by way of all logits.

    Use it in a `with`, or call `close`. Arrays that it returns belong to the caller and are never written again.
    """

    def __init__(
        self,
        graph: Graph | ort.Pending,
        config: ModelInfo,
        manifest: Manifest | None,
        open_graph: Callable[[str], Graph | OrtDecoder] | None = None,
    ) -> None:
        """Take the logits graph, or where it will run; `open_graph` opens those that the manifest lists when needed."""
        self.backend = graph.backend  # "onnxruntime", "tensorrt" or "tensorrt-rtx"
        self.device = graph.device  # what really runs: "cpu" or "cuda"
        self.threads = graph.threads
        self.config = config
        self.manifest = manifest  # None: a bare graph, or an engine
        self.engine = graph.engine_info if isinstance(graph, trt.TrtGraph) else None  # an engine's sidecar
        self._graphs: dict[str, Any] | None = {} if isinstance(graph, ort.Pending) else {heads.LOGITS.name: graph}
        self._open = open_graph
        self._opening = threading.Lock()
        self._pid = os.getpid()

    @overload
    def logits(
        self, ids: Any, *, out: NDArray[np.float32] | None = None, device_output: Literal[False] = False
    ) -> NDArray[np.float32]: ...
    @overload
    def logits(self, ids: Any, *, device_output: Literal[True]) -> DeviceLogits: ...
    def logits(
        self, ids: Any, *, out: NDArray[np.float32] | None = None, device_output: bool = False
    ) -> NDArray[np.float32] | DeviceLogits:
        """Logits of every position.

        Args:
            ids: (B,T) array of any integer dtype, or B rows of ints which need not be equally long. On a GPU also an
                int64 (B,T) tensor that is there, of torch, cupy or whoever speaks DLPack, which `device_output` reads
                where it is. A copy of it comes to the host, to be checked like any ids.
            out: a buffer to write into and return: float32 (B,T,V), C-contiguous. T is that of the longest row.
            device_output: leave the logits where they were computed. Complete when returned; take them with
                `from_dlpack`, without a copy.

        Returns:
            float32 (B,T,V). Shorter rows are padded on the right, which changes nothing before the padding; the
            positions past a row's end are NaN, so that they are never mistaken for logits. With `device_output` they
            are whatever the padding gives.

        Raises:
            ContextLengthError: a row is longer than block_size.
            InputError: `ids` or `out` is not as above, or `out` is given with `device_output`.
            SessionError: the session is closed, or belongs to the parent of this process.
            ExecutionError: the backend failed.
        """
        graph = self._graph(heads.LOGITS.name)
        batch, borrowed = self._batch(ids, heads.LOGITS.name)
        shape = (*batch.shape, self.config.vocab_size)
        if device_output:
            if out is not None:
                raise InputError("out is given with device_output=True, which makes memory of its own. Leave one out.")
            block = graph.run_on_device(batch.ids if borrowed is None else borrowed)
            return DeviceLogits(block, shape, graph.dlpack_device)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        else:
            check_out(out, shape)
        graph.run(batch.ids, out)
        for row, length in zip(out, batch.lengths, strict=True):
            row[length:] = np.nan
        return out

    def last_logits(self, ids: Any) -> NDArray[np.float32]:
        """Logits of each row's last token, not of the padding after it.

        Args:
            ids: as for `logits`.

        Returns:
            float32 (B,V).

        Raises:
            GPTExportError: as `logits`.
        """
        self._check_usable()
        batch, _ = self._batch(ids, heads.LAST.name if self._has(heads.LAST.name) else heads.LOGITS.name)
        V = self.config.vocab_size
        if not self._has(heads.LAST.name):
            return _last_of_all_logits(self._graph(heads.LOGITS.name), batch, V)
        out = np.empty((len(batch.ids), V), dtype=np.float32)
        self._graph(heads.LAST.name).run(batch.ids, out, batch.lengths)
        return out

    def score(self, ids: Any) -> Scores:
        """Log-probs of the tokens that came, given those before them.

        Args:
            ids: as for `logits`. A row of one token has nothing to score.

        Returns:
            Scores: logprobs float32 (B,T-1), and nll, counts and perplexity (B) of them.

        Raises:
            GPTExportError: as `logits`.
        """
        self._check_usable()
        batch, _ = self._batch(ids, heads.SCORE.name if self._has(heads.SCORE.name) else heads.LOGITS.name)
        check_predicted(batch, self.config.vocab_size)
        B, T = batch.shape
        out = np.empty((B, T - 1), dtype=np.float32)
        if T > 1 and self._has(heads.SCORE.name):
            self._graph(heads.SCORE.name).run(batch.ids, out)
        elif T > 1:
            logits = np.empty((1, T, self.config.vocab_size), dtype=np.float32)
            for row, row_ids in zip(out, batch.ids, strict=True):
                self._graph(heads.LOGITS.name).run(row_ids[None], logits)
                row[:] = logprobs_of(logits[0], row_ids)
        for row, length in zip(out, batch.lengths, strict=True):
            row[length - 1 :] = np.nan
        return Scores(out)

    def cache(self, rows: int = 1, *, capacity: int | None = None) -> Cache:
        """An empty key-value cache of `rows` rows, for `generate` and `stream` to go on from.

        Args:
            capacity: the most tokens that a row holds; None: block_size.

        Raises:
            InputError: a number is below 1, or capacity above block_size.
            BackendUnavailableError: the session has no graph that generates.
            SessionError: the session is closed, or belongs to the parent of this process.
        """
        decoder, block_size = self._decoder()
        for name, value in (("rows", rows), ("capacity", capacity)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{name} is {value!r}; expected an integer of 1 or more.")
        if capacity is not None and capacity > block_size:
            raise InputError(f"capacity is {capacity}; the model's block_size is {block_size}.")
        return Cache(decoder, rows, capacity or block_size, self.config.vocab_size)

    def generate(self, ids: Any, **options: Any) -> list[NDArray[np.int64]]:
        """Continue each row until it ends; arguments and errors are those of `stream`.

        Returns: of each row the new tokens, int64, without the id that stopped it.
        """
        steps = list(self.stream(ids, **options))
        if not steps:
            return [np.empty(0, np.int64) for _ in ids]
        return [row[row != ENDED] for row in np.stack(steps, axis=1)]

    def stream(
        self,
        ids: Any,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: Collection[int] | None = None,
        slide: bool = False,
        cache: Cache | None = None,
    ) -> Generator[NDArray[np.int64], None, None]:
        """Continue each row, a token at a time. Arguments are checked before the first step is computed.

        Args:
            ids: as for `logits`.
            max_new_tokens: of each row; None: until it has block_size tokens.
            temperature, top_k, top_p, min_p, repetition_penalty: see sampling.Sampling; temperature 0 is greedy.
            seed: of all rows, or of each. A row's text depends on its ids, its seed and the options, not on other rows,
                but for the rounding of the logits; rows with the same ids and seed get the same text.
            stop: ids that end a row. None: those that the checkpoint says end a text, `eos_token_ids`. An id that the
                model does not take, the last of a padded head, ends a row too.
            slide: go on past block_size, each time from the last half of the text.
            cache: what `Session.cache` made, with as many rows. What it holds of `ids` is not computed again; it holds
                the text but for its last token afterwards. None: one of its own, freed at the end or by `close()`.

        Returns:
            an iterator of int64 (B): each row's next token, or -1 where the row has ended.

        Raises:
            ContextLengthError: a row is longer than block_size, or would become so.
            InputError: an argument is not as above.
            BackendUnavailableError: the session has no graph that generates.
            SessionError, ExecutionError: as `logits`; the cache is in use or closed.
        """
        block_size = self._decoder()[1]
        batch = to_batch(ids, vocab_size=self.config.ids, block_size=block_size)
        limits = Limits(
            block_size=block_size,
            vocab_size=self.config.vocab_size,
            max_new_tokens=max_new_tokens,
            stop=frozenset(self.eos_token_ids if stop is None else stop),
            takes=self.config.ids,
            slide=slide,
        )
        sampling = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        return stream_tokens(
            lambda rows, capacity: self.cache(rows, capacity=capacity), batch, limits, sampling, seed, cache
        )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text, as the checkpoint says; `generate` stops at them unless it is told others."""
        said = self.manifest.text.eos_token_ids if self.manifest is not None else ()
        return tuple(i for i in said if i < self.config.vocab_size)

    def close(self) -> None:
        """Free the model. A call that another thread is in the middle of still finishes. Closing twice is fine."""
        self._graphs = None

    def __enter__(self) -> Session:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._graphs is None else f"{self.backend} on {self.device}"
        return f"<Session {state}, vocab_size={self.config.vocab_size}, block_size={self.config.block_size}>"

    def _batch(self, ids: Any, kind: str) -> tuple[Batch, Borrowed | None]:
        """Ids, checked on the host; and where they came from a tensor on this session's GPU, that too."""
        borrowed = None
        if self.device == "cuda" and _is_on_gpu(ids):
            graph = self._graph(kind)
            borrowed = borrow_ids(ids, graph.stream)
            ids = graph.read_ids(borrowed)
        return to_batch(ids, vocab_size=self.config.ids, block_size=self.config.block_size), borrowed

    def _decoder(self) -> tuple[OrtDecoder, int]:
        """The graph that generates, and block_size, which a cache cannot do without."""
        self._check_usable()
        if not self._has(heads.DECODE.name):
            what = "a bundle without decode.onnx" if self.manifest is not None else "a single graph or engine"
            reason = self.manifest.left_out.get(heads.DECODE.name) if self.manifest is not None else None
            if reason is not None:
                raise BackendUnavailableError(f"this is {what}, which cannot generate: {reason}.")
            raise BackendUnavailableError(
                f"this is {what}, which cannot generate. Export a bundle with it: gptexport onnx CHECKPOINT -o FOLDER."
            )
        if self.config.block_size is None:
            raise BackendUnavailableError("the bundle does not tell its block_size, so it cannot generate.")
        return self._graph(heads.DECODE.name), self.config.block_size

    def _graph(self, kind: str) -> Any:
        """The open graph of a kind; the first call of each opens it."""
        self._check_usable()
        graphs = self._graphs
        assert graphs is not None, "just checked; a close() since leaves this call its graphs"
        with self._opening:
            if kind not in graphs:
                assert self._open is not None, "only what `_has` is asked for"
                graphs[kind] = self._open(kind)
        return graphs[kind]

    def _has(self, kind: str) -> bool:
        return self._open is not None and self.manifest is not None and kind in self.manifest.graphs

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            # the backend's threads did not survive the fork: the first call would wait for them for ever
            raise SessionError(
                f"this session was opened by process {self._pid} and cannot run in process {os.getpid()}, "
                "which was forked from it. Call load() in each process, or start processes with 'spawn'."
            )
        if self._graphs is None:
            raise SessionError("this session is closed. Open another with load().")


def _is_on_gpu(ids: Any) -> bool:
    return hasattr(ids, "__dlpack_device__") and tuple(ids.__dlpack_device__()) == (CUDA, 0)


def _last_of_all_logits(graph: Graph, batch: Batch, vocab_size: int) -> NDArray[np.float32]:
    """(B,V) by way of (B,T,V), for bundles without a graph that computes the last position alone."""
    logits = np.empty((*batch.shape, vocab_size), dtype=np.float32)
    graph.run(batch.ids, logits)
    return logits[np.arange(len(logits)), batch.lengths - 1]
