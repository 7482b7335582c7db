"""ONNX Runtime runs a graph that needs no cache, of any head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptexport_runtime.backends.gpu.dlpack import Borrowed, DeviceLogits
from gptexport_runtime.backends.ort.binding import Floats, Ids, Runner
from gptexport_runtime.backends.ort.signature import read_signature
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.names import INPUT_IDS, LENGTHS
from gptexport_runtime.errors import ExecutionError


class OrtGraph:
    """See base.Graph."""

    def __init__(self, runner: Runner, path: Path, head: Head, check: Callable[[], None] = lambda: None) -> None:
        """`check` raises ArtifactError once the weights are not what they were."""
        found = read_signature(runner.session, path, head)
        self.info = found.info
        self.runner = runner
        self.output_shape = found.output_shape
        self._output_of = found.output_of
        self._check = check
        self._takes_lengths = LENGTHS in head.signature.inputs

    def run(self, ids: Ids, lengths: Ids, out: Floats) -> None:
        feed = {INPUT_IDS: ids, LENGTHS: lengths} if self._takes_lengths else {INPUT_IDS: ids}
        try:
            self.runner.run(feed, self._output_of(*ids.shape), out)
            self._check()
        except ExecutionError as error:
            if self.info.block_size is not None:
                raise
            raise ExecutionError(
                f"{error} The graph does not tell its block_size: T may be past it."
            ) from error.__cause__

    def run_on_device(self, ids: Ids | Borrowed) -> DeviceLogits:
        logits = self.runner.run_on_device({INPUT_IDS: ids}, self._output_of(*ids.shape))
        self._check()
        return logits
