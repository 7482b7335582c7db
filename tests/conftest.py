"""What every part's tests share."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.cli import Cli, Ran

# Every worker of pytest-xdist has a core of its own: more threads of PyTorch only wait for each other (a third slower),
# and so do those of ONNX Runtime, of which there is one for each core that a process may use.
# Set before either is imported; what a test starts inherits it.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Ignored where a shell started pytest in its background; children inherit that, and tests interrupt some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process: `cli("inspect", path)`."""
    from gptexport.cli.app import run

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call
