"""What a person reads is a sentence: every message of our errors ends as one, and help texts say what, not of what."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
import pytest

from gptexport.cli.app import gptexport
from tests.support.pages import ROOT, name_of

SOURCES = [ROOT / "gptexport", ROOT / "runtime" / "gptexport_runtime"]
ERRORS = [ROOT / "gptexport" / "errors.py", ROOT / "runtime" / "gptexport_runtime" / "errors.py"]
# Reasons, which another sentence quotes: "the graph decode cannot be made: {reason}. Leave ..."
REASONS = ("gptexport/export/", "gptexport/parity/locate/cause.py")
ENDS = (".", "?", "!", ":")


def _messages() -> Iterator[tuple[str, str]]:
    """Where an error of ours is made with a text that ends in a literal, and the end of that text."""
    names = {
        node.name for path in ERRORS for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    }
    names |= {"BadParameter", "UsageError"}
    for path in (path for folder in SOURCES for path in sorted(folder.rglob("*.py"))):
        if name_of(path).startswith(REASONS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and _called(node.func) in names:
                text = _end(node.args[0])
                if text is not None:
                    yield f"{name_of(path)}:{node.lineno}", text


def _called(function: ast.expr) -> str:
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _end(argument: ast.expr) -> str | None:
    if isinstance(argument, ast.BinOp):
        return _end(argument.right)
    last = argument.values[-1] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    return last.value if isinstance(last, ast.Constant) and isinstance(last.value, str) else None


def test_messages_end_in_a_full_stop() -> None:
    found = list(_messages())
    assert len(found) > 200, "the scan still finds the errors"
    assert not [f"{where}: ...{text[-50:]!r}" for where, text in found if not text.rstrip().endswith(ENDS)]


@pytest.mark.parametrize("command", gptexport.commands.values(), ids=lambda command: command.name)
def test_options_say_what_they_are(command: click.Command) -> None:
    """A help text is there, begins with a capital and ends in a full stop or in its default."""
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        text = parameter.help or ""
        assert re.fullmatch(r"[A-Z].*\.(  \[default: .*\])?", text), f"{command.name} {parameter.opts[-1]}: {text!r}"
        assert not re.match(r"(Of|As|Whose|Whom) ", text), f"{command.name} {parameter.opts[-1]}: {text!r}"
