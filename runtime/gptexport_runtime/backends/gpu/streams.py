"""A stream of the GPU, and work that was captured from it."""

from __future__ import annotations

from collections.abc import Callable

from gptexport_runtime.backends.gpu.driver import Driver


class Stream:
    """A queue of work that does not wait for the default one. Freed with the object."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = driver.make_stream()

    def wait(self) -> None:
        """Until everything in it is done; errors of the work show here."""
        self._driver.wait(self.handle)

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """Record what `work` puts into the stream, which is not done yet.

        Raises:
            ExecutionError: it does something that cannot be captured.
        """
        self._driver.begin_capture(self.handle)
        try:
            work()
        except BaseException:
            self._driver.abandon_capture(self.handle)
            raise
        return CapturedGraph(self._driver, self._driver.end_capture(self.handle))

    def launch(self, graph: CapturedGraph) -> None:
        self._driver.launch(graph.executable, self.handle)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._driver.drop_stream(self.handle)


class CapturedGraph:
    """A CUDA graph: work at fixed addresses, which one launch repeats. Freed with the object."""

    def __init__(self, driver: Driver, executable: int) -> None:
        self._driver = driver
        self.executable = executable

    def __del__(self) -> None:
        self._driver.drop_graph(self.executable)
