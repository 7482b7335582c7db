"""Open an exported GPT and run it: numpy in, numpy out, the same checks and errors on every backend."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Sequence
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.artifact import Artifact
from gptexport_runtime.backends.base import Backend, Decoder
from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.contract.heads import DECODE, LAST, LOGITS, SCORE, Head
from gptexport_runtime.contract.model import ModelInfo
from gptexport_runtime.contract.names import AXIS_SCORED
from gptexport_runtime.errors import BackendUnavailableError, InputError, SessionError, shown
from gptexport_runtime.generate.cache import Cache
from gptexport_runtime.generate.recompute import RecomputingDecoder
from gptexport_runtime.generate.sampling import Sampling
from gptexport_runtime.generate.stream import ENDED, Limits, stream_tokens
from gptexport_runtime.inputs import Batch, check_out, check_predicted, is_count, to_batch
from gptexport_runtime.run_head import find_head, run_head
from gptexport_runtime.score import Scores


class Session:
    """An open model; `load` makes one. Threads may share it, and take turns on a GPU. A forked child must open its own.

    `logits`, `last_logits`, `score` and `generate` each have a graph, opened when first used, with its own packed
    weights (`prepack=False` shares the mapped file instead). A bundle without the second or third gives the same
    numbers by way of all logits.

    Use it in a `with`, or call `close`. Arrays that it returns belong to the caller and are never written again.
    """

    def __init__(self, backend: Backend, config: ModelInfo, artifact: Artifact | None = None) -> None:
        """
        Args:
            config: the model's limits.
            artifact: what the backend runs, if it is known.
        """
        self.backend = backend.name  # "onnxruntime", "tensorrt" or "tensorrt-rtx"
        self.device = backend.device  # what really runs: "cpu" or "cuda"
        self.threads = backend.threads
        self.config = config
        self.manifest = artifact.manifest if artifact else None  # of a bundle
        self.engine = artifact.engine if artifact else None  # an engine's sidecar
        self.description = artifact.description if artifact else None  # whichever of the two there is
        self._backend: Backend | None = backend
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
        backend = self._usable()
        batch, borrowed = self._batch(backend, ids, self.config.block_size)
        if device_output and out is not None:
            raise InputError("out is given with device_output=True, which makes memory of its own. Leave one out.")
        graph = backend.open(LOGITS)
        if device_output:
            return graph.run_on_device(batch.ids if borrowed is None else borrowed)
        shape = graph.output_shape(*batch.shape)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        else:
            check_out(out, shape)
        graph.run(batch.ids, batch.lengths, out)
        if batch.ragged:
            LOGITS.hide_padding(out, batch.lengths)
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
        return self.run(LAST, ids)

    def score(self, ids: Any) -> Scores:
        """Log-probs of the tokens that came, given those before them.

        Args:
            ids: as for `logits`. A row of one token has nothing to score.

        Returns:
            Scores: logprobs float32 (B,T-1), and nll, counts and perplexity (B) of them.

        Raises:
            GPTExportError: as `logits`.
        """
        return Scores(self.run(SCORE, ids))

    def run(self, head: Head | str, ids: Any) -> NDArray[np.float32]:
        """The output of any head: of its own graph, or else by its definition from all logits.

        Args:
            head: one of contract/heads.py, or its name.
            ids: as for `logits`.

        Returns:
            float32, with the axes of `head.signature.output_axes`; NaN past a row's end.

        Raises:
            InputError: there is no such head.
            GPTExportError: as `logits`.
        """
        head = find_head(head)
        backend = self._usable()
        batch, _ = self._batch(backend, ids, self.config.block_size)
        if AXIS_SCORED in head.signature.output_axes:
            check_predicted(batch, self.config.vocab_size)
        out = run_head(backend, head, batch, self.config.vocab_size)
        if batch.ragged:
            head.hide_padding(out, batch.lengths)
        return out

    def cache(self, rows: int = 1, *, capacity: int | None = None) -> Cache:
        """An empty key-value cache of `rows` rows, for `generate` and `stream` of this session to go on from.

        Args:
            capacity: the most tokens that a row holds; None: block_size.

        Raises:
            InputError: a number is below 1, or capacity above block_size.
            ExecutionError: there is no memory for it.
            BackendUnavailableError: the session has no graph that generates.
            SessionError: the session is closed, or belongs to the parent of this process.
        """
        backend, block_size = self._generating()
        for name, value in (("rows", rows), ("capacity", capacity)):
            if (value is not None or name == "rows") and not is_count(value):
                raise InputError(f"{name} is {shown(value)}; expected an integer of 1 or more.")
        if capacity is not None and capacity > block_size:
            raise InputError(f"capacity is {capacity}; the model's block_size is {block_size}.")
        decoder, most = self._decoder(backend), int(capacity or block_size)
        return Cache(decoder, int(rows), most, self.config.vocab_size, owner=backend)

    def generate(
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
        stop: Collection[int] | Literal["eos"] = "eos",
        slide: bool = False,
        cache: Cache | None = None,
    ) -> list[NDArray[np.int64]]:
        """Continue each row until it ends; arguments and errors are those of `stream`.

        Returns: of each row the new tokens, int64, without the id that stopped it.
        """
        steps = list(
            self.stream(
                ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=stop,
                slide=slide,
                cache=cache,
            )
        )
        if not steps:
            return [np.empty(0, np.int64) for _ in range(len(ids))]
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
        stop: Collection[int] | Literal["eos"] = "eos",
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
            stop: ids that end a row. "eos": those that the checkpoint says end a text, `eos_token_ids`. An id that the
                model does not take, the last of a padded head, ends a row too.
            slide: go on past block_size, each time from the last half of the text; a longer row of `ids` too.
            cache: what `Session.cache` made, with as many rows. What it holds of `ids` is not computed again; it holds
                the text but for its last token afterwards. None: one of its own, freed at the end or by `close()`.

        Returns:
            an iterator of int64 (B): each row's next token, or -1 where the row has ended.

        Raises:
            ContextLengthError: a row is longer than block_size, or would become so, and may not slide.
            InputError: an argument is not as above.
            BackendUnavailableError: the session has no graph that generates.
            SessionError, ExecutionError: as `logits`; the cache is in use or closed.
        """
        backend, block_size = self._generating()
        limits = Limits(
            block_size=block_size,
            vocab_size=self.config.vocab_size,
            max_new_tokens=max_new_tokens,
            stop=self.eos_token_ids if isinstance(stop, str) and stop == "eos" else stop,
            takes=self.config.ids,
            slide=slide,
        )
        sampling = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        batch, _ = self._batch(backend, ids, None if slide else block_size)
        steps = stream_tokens(
            lambda rows, capacity: self.cache(rows, capacity=capacity), batch, limits, sampling, seed, cache
        )
        if cache is not None and not cache.is_of(backend):
            raise InputError("the cache is another session's, which may be of another model. See Session.cache.")
        self._decoder(backend)  # whatever is wrong with it is said now
        return steps

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text, as the checkpoint says; `generate` stops at them unless it is told others."""
        said = self.manifest.text.eos_token_ids if self.manifest is not None else ()
        return tuple(i for i in said if i < self.config.vocab_size)

    def close(self) -> None:
        """Free the model. A call that another thread is in the middle of still finishes. Closing twice is fine."""
        self._backend = None

    def __enter__(self) -> Session:
        self._usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._backend is None else f"{self.backend} on {self.device}"
        return f"<Session {state}, vocab_size={self.config.vocab_size}, block_size={self.config.block_size}>"

    @property
    def captured_graphs(self) -> int:
        """How many CUDA graphs it has captured so far."""
        return self._usable().captured_graphs

    def _batch(self, backend: Backend, ids: Any, longest: int | None) -> tuple[Batch, Borrowed | None]:
        """Ids, checked on the host; and where they came from a tensor on this session's device, that too."""
        borrowed = backend.borrow(ids)
        if borrowed is not None:
            ids = backend.read(borrowed)
        return to_batch(ids, vocab_size=self.config.ids, block_size=longest), borrowed

    @property
    def why_slow(self) -> str | None:
        """Why `generate` computes the whole text again for every token; None where it keeps keys and values."""
        backend = self._usable()
        if backend.has(DECODE):
            return None
        reason = self.manifest.left_out.get(DECODE.name) if self.manifest is not None else None
        return reason or f"the artifact has no {DECODE.file}"

    def _generating(self) -> tuple[Backend, int]:
        """The backend, and block_size, which a cache cannot do without."""
        backend = self._usable()
        if self.config.block_size is None:
            raise BackendUnavailableError("the artifact does not tell its block_size, so it cannot generate.")
        return backend, self.config.block_size

    def _decoder(self, backend: Backend) -> Decoder:
        """What continues text: the graph with a cache, or without one all of the text for every token."""
        if backend.has(DECODE):
            return backend.open_decoder(DECODE)
        V = self.config.vocab_size
        return RecomputingDecoder(lambda batch: run_head(backend, LAST, batch, V), backend.tokens_at_once)

    def _usable(self) -> Backend:
        if os.getpid() != self._pid:
            # the backend's threads did not survive the fork: the first call would wait for them for ever
            raise SessionError(
                f"this session was opened by process {self._pid} and cannot run in process {os.getpid()}, "
                "which was forked from it. Call load() in each process, or start processes with 'spawn'."
            )
        backend = self._backend
        if backend is None:
            raise SessionError("this session is closed. Open another with load().")
        return backend
