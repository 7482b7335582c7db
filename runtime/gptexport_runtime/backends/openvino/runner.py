"""Bound to the host's memory, as host.py does it, where a graph is OpenVINO's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from gptexport_runtime.backends.openvino.session import OpenVinoSession
from gptexport_runtime.backends.ort.binding import Ids
from gptexport_runtime.backends.ort.host import HostBinding, HostRunner
from gptexport_runtime.backends.ort.package import first_line
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.errors import ExecutionError

if TYPE_CHECKING:
    from gptexport_runtime.backends.ort.cache import CacheRows
    from gptexport_runtime.backends.ort.options import OpenOptions


class OpenVinoRunner(HostRunner):
    """See binding.Runner. Heads with a cache run on ONNX Runtime."""

    session: OpenVinoSession

    def _run(self, feed: Mapping[str, Ids], output: Output, out: NDArray[Any], cache: CacheRows | None) -> None:
        assert cache is None, "a head with a cache is of those on_cpu"
        try:
            self.session.compute(feed, output.name, out)
        except Exception as error:  # RuntimeError, of whatever failed
            B, T = next(iter(feed.values())).shape
            raise ExecutionError(f"{self._what} at B={B}, T={T}: {first_line(error)}.") from error


class OpenVinoBinding(HostBinding):
    """See binding.Binding."""

    def open(self, open_session: Callable[[bool], Any], head: Head, options: OpenOptions, what: str) -> HostRunner:
        session = open_session(False)
        session.compile()
        return OpenVinoRunner(session, f"{what} failed on {self._device}", self._tokens_at_once)
