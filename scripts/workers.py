"""Each peer of a benchmark is a process of its own, so that nobody's threads or memory are somebody else's.

A worker reads a line of numbers, runs, and answers with the seconds and its peak memory; the others are idle meanwhile.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

PAUSE = 0.05  # seconds between runs, for the threads of the one before to go to sleep

Worker = subprocess.Popen[str]
Case = TypeVar("Case", bound=tuple[int, ...])
Measure = Callable[..., float]  # the numbers of a line to seconds


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


def start(
    script: str, names: list[str], folder: Path, environments: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> tuple[dict[str, Worker], dict[str, str]]:
    """A worker for each name, and why there is none: `script --worker NAME FOLDER` must end in `serve`.

    Args:
        environments: by name, variables that its process has besides.
    """
    started: dict[str, Worker] = {}
    for name in names:  # all begin at once: some compile for minutes
        command = [sys.executable, script, "--worker", name, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = {**os.environ, **environments.get(name, {})}
        started[name] = subprocess.Popen(command, **pipes, text=True, bufsize=1, env=environment)
    workers, missing = {}, {}
    for name, worker in started.items():
        assert worker.stdout is not None
        answer = worker.stdout.readline().strip()
        if answer == "ready":
            workers[name] = worker
        else:
            missing[name] = answer.removeprefix("missing ") or "it ended without a word"
            print(f"{name}: {missing[name]}", file=sys.stderr)
    return workers, missing


def interleave(
    workers: dict[str, Worker], cases: list[Case], rounds: int, failed: dict[str, str] | None = None
) -> tuple[dict[Case, dict[str, list[float]]], dict[str, float]]:
    """Seconds by case and peer, a list over rounds after one that does not count; each peer's peak memory in MiB.

    Args:
        failed: gets the peers that failed, and where; the others go on. None: the first to fail ends it all.
    """
    seconds: dict[Case, dict[str, list[float]]] = {}
    peaks: dict[str, float] = {}
    for case in cases:
        told = "x".join(map(str, case))
        seconds[case] = {name: [] for name in workers}
        for number in range(-1, rounds):
            print(f"\r{told}: round {number + 1} of {rounds}   ", end="", file=sys.stderr, flush=True)
            for name, worker in list(workers.items()):
                time.sleep(PAUSE)
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write(" ".join(map(str, case)) + "\n")
                answer = worker.stdout.readline().split()
                if len(answer) != 2:
                    if failed is None:
                        raise SystemExit(f"{name} failed at {told}; leave it out with --only")
                    failed[name] = f"it failed at {told}"
                    del workers[name], seconds[case][name]
                    continue
                peaks[name] = float(answer[1])
                if number >= 0:
                    seconds[case][name].append(float(answer[0]))
    print(file=sys.stderr)
    return seconds, peaks


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
