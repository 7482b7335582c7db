"""What holds of every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gptexport.cli.app as app
from gptexport import checkpoints
from tests.support.cli import Cli

COMMANDS = sorted({*app.gptexport.commands} - {"completion", "help", "version"})  # which print text alone


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples_and_knows_the_common_options(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0
    assert 0 < ran.out.index("Examples:") < ran.out.index("Options:")
    assert all(option in ran.out for option in ("--json", "--quiet", "--verbose"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["onnx", "--help"], ["parity", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """torch alone takes seconds."""
    code = (
        "import sys; from gptexport.cli.app import run; run(sys.argv[1:]);"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'google'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("[]\n")


def test_a_bug_is_one_message_and_a_traceback_only_with_v(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_path: str) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(checkpoints, "describe_checkpoint", broken)
    ran = cli("inspect", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert "surprise\nThis is a bug in gptexport" in ran.err
    with pytest.raises(ZeroDivisionError):
        cli("inspect", tmp_path, "-v")
