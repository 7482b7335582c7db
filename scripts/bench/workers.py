"""Each peer of a benchmark is a process of its own, so that no peer runs on another's threads or in its memory.

A worker reads a line of numbers, runs, and answers with the seconds and its peak memory; the others are idle meanwhile.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

PAUSE = 0.05  # seconds between runs, for the threads of the one before to go to sleep

Worker = subprocess.Popen[str]
Measure = Callable[..., float]  # the numbers of a case to seconds
Case = TypeVar("Case", bound=tuple[int, ...])
Seconds = dict[Case, dict[str, list[float]]]  # by case and peer, one for each round


@dataclass(frozen=True)
class Workers:
    """Those that started, and why the others did not."""

    started: dict[str, Worker]
    missing: dict[str, str]


def parse_or_serve(parser: argparse.ArgumentParser, timed: Callable[[str, Path], Measure]) -> argparse.Namespace:
    """The options; or, in a process that `running` has started with `--worker NAME FOLDER`, a life as that worker.

    Args:
        timed: makes what a worker of that name measures, with the files in the folder.
    """
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, folder = args.worker
        serve(lambda: timed(name, Path(folder)))
        raise SystemExit
    return args


def serve(make: Callable[[], Measure]) -> None:
    """Be a worker until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is not an answer
    try:
        measure = make()
    except Exception as error:
        print(f"missing {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=answers)
        return
    print("ready", file=answers)
    for line in sys.stdin:
        seconds = measure(*map(int, line.split()))
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=answers)


@contextmanager
def running(
    command: Sequence[str],
    names: Sequence[str],
    folder: Path,
    environments: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    *,
    together: bool = True,
) -> Iterator[Workers]:
    """A worker for each name, ended with the `with`.

    Args:
        command: what starts one, as `command --worker NAME FOLDER`; it must end in `serve`.
        environments: by name, variables that its process has besides.
        together: all begin at once; False: each when the one before is ready, as it need be where they share a GPU.
    """
    started: dict[str, Worker] = {}
    try:
        reasons: dict[str, str | None] = {}
        for name in names:
            started[name] = subprocess.Popen(
                [*command, "--worker", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env={**os.environ, **environments.get(name, {})},
            )
            if not together:
                reasons[name] = _why_not(started[name])
        reasons |= {name: _why_not(worker) for name, worker in started.items() if name not in reasons}
        missing = {name: reason for name, reason in reasons.items() if reason is not None}
        for name, reason in missing.items():
            print(f"{name}: {reason}", file=sys.stderr)
        yield Workers({name: worker for name, worker in started.items() if name not in missing}, missing)
    finally:
        for worker in started.values():
            worker.kill()
            worker.communicate()


def module(name: str) -> list[str]:
    """The command that runs one of our modules: `module("scripts.bench.cpu")`."""
    return [sys.executable, "-m", name]


def _why_not(worker: Worker) -> str | None:
    assert worker.stdout is not None
    answer = worker.stdout.readline().strip()
    return None if answer == "ready" else answer.removeprefix("missing ") or "it ended without a word"


def interleave(
    workers: dict[str, Worker], cases: Sequence[Case], rounds: int, failed: dict[str, str] | None = None
) -> tuple[Seconds[Case], dict[str, float]]:
    """Seconds by case and peer, a list over rounds after one that does not count; each peer's peak memory in MiB.

    Args:
        failed: gets the peers that failed, and where; the others go on. None: the first to fail ends it all.
    """
    seconds: Seconds[Case] = {}
    peaks: dict[str, float] = {}
    for case in cases:
        shown = "x".join(map(str, case))
        seconds[case] = {name: [] for name in workers}
        for number in range(-1, rounds):
            print(f"\r{shown}: round {number + 1} of {rounds}   ", end="", file=sys.stderr, flush=True)
            for name, worker in list(workers.items()):
                time.sleep(PAUSE)
                answer = _ask(worker, case)
                if answer is None:
                    if failed is None:
                        raise SystemExit(f"{name} failed at {shown}; leave it out with --only")
                    failed[name] = f"it failed at {shown}"
                    del workers[name], seconds[case][name]
                    continue
                spent, peaks[name] = answer
                if number >= 0:
                    seconds[case][name].append(spent)
    print(file=sys.stderr)
    return seconds, peaks


def _ask(worker: Worker, case: tuple[int, ...]) -> tuple[float, float] | None:
    """Seconds of one run, and the peak so far; None where the worker has ended."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(" ".join(map(str, case)) + "\n")
        spent, peak = worker.stdout.readline().split()
    except (BrokenPipeError, ValueError):
        return None
    return float(spent), float(peak)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
