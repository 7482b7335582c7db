"""A session whose graphs run in the page: parity measures it as it does any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptexport.web.server import SiteServer
from gptexport_runtime import Session
from gptexport_runtime.artifact import Artifact
from gptexport_runtime.backends.base import CacheMemory, Decoder, Floats, Graph, Ids
from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.contract.heads import DECODE, LOGITS, Head
from gptexport_runtime.contract.model import ModelInfo
from gptexport_runtime.errors import ExecutionError, InputError

SECONDS = 600.0  # for one answer; the first reads the weights


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that has the model open."""

    server: SiteServer
    onnxruntime: str  # version of onnxruntime-web
    threads: int
    agent: str  # how the browser names itself

    @classmethod
    def at(cls, server: SiteServer) -> Page:
        """The page that is being opened, once its model is there.

        Raises:
            ExecutionError: it cannot open the model, or does not answer.
        """
        said = json.loads(server.ask("open", SECONDS))
        return cls(server=server, **said)

    def session(self, artifact: Artifact) -> Session:
        """A session of the site's bundle in the page."""
        assert artifact.manifest is not None
        info = artifact.manifest.info
        return Session(PageBackend(self, info), info, artifact)

    def greedy(self, ids: Ids, count: int) -> Ids:
        """What the page itself generates from (T) ids: int64 (count), or fewer where the text ends."""
        return np.asarray(self.json("greedy", ids=ids.tolist(), count=count), np.int64)

    def write(self, prompt: str, count: int) -> tuple[Ids, Ids]:
        """What the page's form writes after a prompt, greedily: int64, the prompt's ids and the new ones."""
        found = self.json("write", prompt=prompt, count=count)
        return np.asarray(found["given"], np.int64), np.asarray(found["ids"], np.int64)

    def encode(self, texts: list[str]) -> list[list[int] | None]:
        """What the page's tokenizer makes of texts; None where it cannot."""
        found: list[list[int] | None] = self.json("encode", texts=texts)
        return found

    def json(self, name: str, **given: Any) -> Any:
        return json.loads(self.server.ask(name, SECONDS, **given))

    def floats(self, name: str, out: Floats, **given: Any) -> None:
        """Raises: ExecutionError: the page brings another number of them."""
        found = np.frombuffer(self.server.ask(name, SECONDS, **given), np.float32)
        if found.size != out.size:
            raise ExecutionError(f"the page answers {found.size} numbers; expected {out.size}.")
        out[...] = found.reshape(out.shape)


class PageBackend:
    """What a session calls, answered by the page."""

    device = "cpu"
    tokens_at_once = 1024
    captured_graphs = 0

    def __init__(self, page: Page, info: ModelInfo) -> None:
        self.name = f"onnxruntime-web {page.onnxruntime}"
        self.threads = page.threads
        self._page = page
        self._info = info

    def info(self) -> ModelInfo:
        return self._info

    def has(self, head: Head) -> bool:
        return head in (LOGITS, DECODE)

    def open(self, head: Head) -> Graph:
        return _Logits(self._page, self._info.vocab_size)

    def open_decoder(self, head: Head) -> Decoder:
        return _Decoder(self._page)

    def borrow(self, ids: object) -> Borrowed | None:
        return None

    def read(self, ids: Borrowed) -> Ids:
        raise InputError("ids are on a device; the page takes them from the host.")


@dataclass(frozen=True)
class _Logits:
    page: Page
    vocab_size: int

    def output_shape(self, B: int, T: int) -> tuple[int, ...]:
        return B, T, self.vocab_size

    def run(self, ids: Ids, lengths: Ids, out: Floats) -> None:
        self.page.floats("logits", out, ids=ids.tolist())

    def run_on_device(self, ids: Ids | Borrowed) -> DeviceLogits:
        raise InputError("device_output is for sessions on a GPU; the page's logits come to the host.")


@dataclass(frozen=True)
class _Decoder:
    page: Page
    tokens_at_once: int = 1024

    def allocate(self, rows: int, capacity: int) -> CacheMemory:
        return _Memory(self.page, [self._row() for _ in range(rows)])

    def _row(self) -> int:
        return int(self.page.json("allocate"))


class _Memory:
    """A cache of the page for each row, so that a row can go or begin without the others."""

    def __init__(self, page: Page, caches: list[int]) -> None:
        self._page = page
        self._caches = caches

    def run(self, rows: slice, ids: Ids, lengths: Ids, past_lengths: Ids, out: Floats) -> None:
        for at, cache in enumerate(self._caches[rows]):
            length, past = int(lengths[at]), int(past_lengths[at])
            self._page.floats("decode", out[at], cache=cache, ids=ids[at].tolist(), length=length, past=past)

    def keep(self, rows: Ids, length: int) -> None:
        self._caches = [self._caches[int(row)] for row in rows]

    def fork(self, rows: Ids, length: int) -> CacheMemory:
        raise InputError("a cache of the page cannot be forked.")
