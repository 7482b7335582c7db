"""The graphs of an artifact, each opened when it is first asked for, by ONNX Runtime or by what a provider brings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.gpu.dlpack import Borrowed
from gptexport_runtime.backends.ort.binding import Binding, Ids, Runner
from gptexport_runtime.backends.ort.decoder import OrtDecoder
from gptexport_runtime.backends.ort.graph import OrtGraph
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.backends.ort.session import open_session
from gptexport_runtime.backends.ort.signature import check_weights, read_signature
from gptexport_runtime.backends.ort.wire import refuse_functions
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.model import ModelInfo
from gptexport_runtime.files import MappedFile


class OrtBackend:
    """See base.Backend. Each graph has a session of its own, with its own packed weights."""

    def __init__(
        self,
        provider: Provider,
        files: Mapping[str, Path],
        options: OpenOptions | None = None,
        *,
        weights: Path | None = None,
        on_cpu: Collection[str] = (),
        check_unchanged: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            files: the graphs, by the name of their head.
            options: None: the defaults.
            on_cpu: heads whose graphs run on the CPU, whatever the provider.
            weights: the file that the graphs read their weights from, where that is known.
            check_unchanged: raises ArtifactError once a file is not what it was. Graphs are opened late, and by name.
        """
        self.name, self.device = provider.backend, provider.device
        self.tokens_at_once = provider.tokens_at_once
        self._options = options or OpenOptions()
        self.threads = self._options.threads or provider.threads()
        self._provider, self._files = provider, files
        self._weights, self._check_unchanged = weights, check_unchanged
        self._mapped = MappedFile(weights) if weights is not None else None
        self._binding = provider.bind()
        others = provider if provider.device == CPU.device else CPU
        binding = self._binding if others is provider else CPU.bind()
        self._elsewhere = dict.fromkeys(on_cpu, (others, binding))
        self._graphs: dict[str, OrtGraph] = {}
        self._decoders: dict[str, OrtDecoder] = {}
        self._opening = threading.Lock()

    @property
    def captured_graphs(self) -> int:
        graphs: list[OrtGraph | OrtDecoder] = [*self._graphs.values(), *self._decoders.values()]
        return sum(graph.runner.captured_graphs for graph in graphs)

    def info(self) -> ModelInfo:
        """See base.Backend. Where graphs are opened when needed, the file is tried as cheaply as can be."""
        if self._provider.opens_at_load or len(self._files) == 1:
            return self.open(heads.LOGITS).info
        path = self._files[heads.LOGITS.name]
        cheap = OpenOptions(threads=1, prepack=False, spin=False)
        return read_signature(self._session(path, cheap, self._provider, optimize=False), path, heads.LOGITS).info

    def has(self, head: Head) -> bool:
        return head.name in self._files

    def open(self, head: Head) -> OrtGraph:
        graph = self._graphs.get(head.name)
        if graph is None:
            with self._opening:
                graph = self._graphs.get(head.name)
                if graph is None:
                    runner, path = self._runner(head), self._files[head.name]
                    graph = self._graphs[head.name] = OrtGraph(runner, path, head, self._check_mapped)
        return graph

    def open_decoder(self, head: Head) -> OrtDecoder:
        with self._opening:
            if head.name not in self._decoders:
                runner, path = self._runner(head), self._files[head.name]
                provider, binding = self._place(head)
                self._decoders[head.name] = OrtDecoder(
                    runner, binding, path, head, provider.tokens_at_once, self._check_mapped
                )
        return self._decoders[head.name]

    def borrow(self, ids: object) -> Borrowed | None:
        return self._binding.borrow(ids)

    def read(self, ids: Borrowed) -> Ids:
        return self._binding.read(ids)

    def _runner(self, head: Head) -> Runner:
        path = self._files[head.name]
        provider, binding = self._place(head)
        # a plan is one block of memory, which is kept while a loop runs, whose trips need as much again
        open_with = partial(self._session, path, self._options, provider, plan=not head.loops)
        return binding.open(lambda captures: open_with(captures=captures), head, self._options, str(path))

    def _place(self, head: Head) -> tuple[Provider, Binding]:
        """Where a head's graph runs, and what its memory is bound to."""
        return self._elsewhere.get(head.name, (self._provider, self._binding))

    def _session(
        self,
        path: Path,
        options: OpenOptions,
        provider: Provider,
        *,
        optimize: bool = True,
        plan: bool = True,
        captures: bool = False,
    ) -> Any:
        """A session of this very file, with the weights that belong to it."""
        self._check_unchanged()
        refuse_functions(path)
        session = open_session(path, provider, options, optimize=optimize, plan=plan, captures=captures)
        self._check_unchanged()
        check_weights(session, path, self._weights)
        return session

    def _check_mapped(self) -> None:
        if self._mapped is not None:
            self._mapped.check()
