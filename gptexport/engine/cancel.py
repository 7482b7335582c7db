"""A build in TensorRT, which can be cancelled and says how far it is."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")
Progress = Callable[[str, float], None]  # the phase, and how much of the build is done, 0 ... 1


def make_monitor(trt: types.ModuleType, progress: Progress, cancelled: threading.Event) -> Any:
    """A progress monitor: reports each step to `progress`, and stops the build once `cancelled` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.phases: list[list[Any]] = []  # [name, steps, steps done] from the outermost in

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            while self.phases and self.phases[-1][0] != parent:
                self.phases.pop()
            self.phases.append([name, max(steps, 1), 0])
            self._report()

        def step_complete(self, name: str, step: int) -> bool:
            for phase in self.phases:
                if phase[0] == name:
                    phase[2] = step + 1
            self._report()
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            while self.phases and self.phases.pop()[0] != name:
                pass

        def _report(self) -> None:
            done, scale = 0.0, 1.0
            for _, steps, finished in self.phases:
                done += scale * min(finished / steps, 1.0)
                scale /= steps
            progress(self.phases[-1][0] if self.phases else "", min(done, 1.0))

    return Monitor()


def call_interruptibly(work: Callable[[], R], cancelled: threading.Event) -> R:
    """Run `work` in a thread, so that Ctrl-C is heard while a library holds it; then wait until it has stopped.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; `cancelled` was set, and `work` is over.
        BaseException: whatever `work` raised.
    """
    result: list[R] = []
    errors: list[BaseException] = []
    # not Thread.join, which returns early after an interrupt, as if the thread had ended (CPython 3.11)
    over = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            over.set()

    threading.Thread(target=run, name="engine-build").start()
    interrupt: KeyboardInterrupt | None = None
    while not over.is_set():
        try:
            over.wait(0.1)
        except KeyboardInterrupt as error:
            interrupt = error
            cancelled.set()
    if interrupt is not None:
        raise interrupt
    if errors:
        raise errors[0]
    return result[0]
