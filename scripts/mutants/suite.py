"""The tests of one file, collected once and run in forked children."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from scripts.mutants.mutate import ROOT, Mutant
from scripts.mutants.patch import apply

PATIENCE = 120  # seconds: a mutant that never ends was noticed
UNTRIED = 77  # exit code of a mutant that could not be put in place
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "-m", "not slow and not gpu"]


@dataclass(frozen=True)
class Reach:
    """What a test runs of the file: lines, the lines of every function that it enters, and whether it forks."""

    lines: frozenset[int]
    near: frozenset[int]
    forks: bool
    seconds: float

    def order(self, line: int) -> tuple[int, float]:
        """The sooner the likelier it notices a change of the line."""
        return 0 if line in self.lines else 1 if line in self.near else 2 if self.forks else 3, self.seconds


def with_suite(file: str, tests: Sequence[str], work: Callable[[Suite], object]) -> None:
    """Collect the tests, and do the work instead of running them."""
    with tempfile.TemporaryDirectory(prefix="gptexport-mutants-") as folder:
        paths = [str(ROOT / test) for test in tests]
        code = pytest.main([*OPTIONS, f"--basetemp={folder}/tmp", *paths], [_InsteadOfTests(file, Path(folder), work)])
    assert code == 0, f"the tests of {file} are not collected: exit code {code}"


class _InsteadOfTests:
    """A plugin of pytest."""

    def __init__(self, file: str, folder: Path, work: Callable[[Suite], object]) -> None:
        self.file, self.folder, self.work = file, folder, work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config.pluginmanager.unregister(name="terminalreporter")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)  # OpenMP's threads are not in a forked child
        self.work(Suite(self.file, session, self.folder))
        return True


class Suite:
    """The tests of a file, and which of them reach which of its lines."""

    def __init__(self, file: str, session: pytest.Session, folder: Path) -> None:
        self.path, self.session, found = str(ROOT / file), session, folder / "reached"
        code = self._in_child(lambda: found.write_bytes(pickle.dumps(self._reached())), 10 * PATIENCE)
        assert code == 0, f"the tests of {file} fail as it is: exit code {code}"
        self.reached: list[Reach] = pickle.loads(found.read_bytes())

    def outcome(self, mutant: Mutant, whole: bool) -> str:
        """`killed`, `survives`, or `untried`; `whole`: by every test, not only those that seem to reach it."""
        orders = [reach.order(mutant.line) for reach in self.reached]
        inside = any(mutant.line in reach.near for reach in self.reached)
        numbers = sorted(range(len(orders)), key=lambda number: orders[number])
        chosen = [self.session.items[number] for number in numbers if whole or not inside or orders[number][0] < 3]

        def trial() -> None:
            try:
                apply(mutant)
            except ValueError:
                os._exit(UNTRIED)
            self._run(chosen)

        return {0: "survives", UNTRIED: "untried"}.get(self._in_child(trial, PATIENCE), "killed")

    def _run(self, items: Sequence[pytest.Item], each: Callable[[], object] = lambda: None) -> None:
        """Run them in this process, up to the first that fails."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.session.testsfailed:
                os._exit(1)
            each()

    def _reached(self) -> list[Reach]:
        found: list[Reach] = []
        lines, near, forks = set[int](), set[int](), list[bool]()
        start = [time.monotonic()]
        os.register_at_fork(before=lambda: forks.append(True))

        def enter(frame: FrameType, _event: str, _value: object) -> Any:
            if frame.f_code.co_filename != self.path:
                return None
            own = [line for _, _, line in frame.f_code.co_lines() if line]
            near.update(range(min(own), max(own) + 1))
            return reach

        def reach(frame: FrameType, _event: str, _value: object) -> Any:
            lines.add(frame.f_lineno)
            return reach

        def note() -> None:
            now = time.monotonic()
            found.append(Reach(frozenset(lines), frozenset(near), bool(forks), now - start[0]))
            for noted in (lines, near, forks):
                noted.clear()
            start[0] = now

        sys.settrace(enter)
        self._run(self.session.items, note)
        sys.settrace(None)
        return found

    def _in_child(self, work: Callable[[], object], patience: float) -> int:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            try:
                work()
            except BaseException:
                os._exit(2)
            os._exit(0)
        until = time.monotonic() + patience
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                until = float("inf")
            time.sleep(0.005)
