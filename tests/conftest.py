"""What every part's tests share."""

from __future__ import annotations

import signal

import pytest

from tests.support.cli import Cli, Ran

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what runs in its background: children inherit it
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
