"""Whole processes, timed from their start to their end, with the most memory that they held."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

GPTEXPORT = [sys.executable, "-m", "gptexport"]


@dataclass(frozen=True)
class Run:
    """One process, or the medians of several."""

    seconds: float
    peak_mb: float


def run(command: list[str]) -> Run:
    """Run to the end; wait4 gives the peak memory of this process alone.

    A child's peak begins at its parent's size, so the parent must stay small: no torch in it.

    Raises:
        SystemExit: the command failed.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return Run(seconds, usage.ru_maxrss * 1024 / 1e6)  # ru_maxrss is in KiB on Linux


def median(runs: Sequence[Run]) -> Run:
    return Run(statistics.median(run.seconds for run in runs), statistics.median(run.peak_mb for run in runs))
