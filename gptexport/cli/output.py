"""How every command speaks: data on stdout, everything else on stderr. Nothing is printed elsewhere."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, TextIO, TypeVar

import click

from gptexport.cli.terminal import in_color, one_line, printable

SCHEMA_VERSION = 1

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Output:
    """The voice of one command, as its --json, -q and -v say."""

    command: str
    as_json: bool
    quiet: bool
    verbose: bool
    stdout: TextIO
    began: float = field(default_factory=time.monotonic)
    _waiting: Waiting | None = None

    def step(self, text: str) -> None:
        """Progress, for people: what is being done now, and when it began. On a terminal it counts on meanwhile."""
        self.still()
        if not self.quiet:
            say(click.style(f"{time.monotonic() - self.began:6.1f}s  ", dim=True), text)
            if sys.stderr.isatty() and in_color() is None:
                self._waiting = Waiting(sys.stderr)

    def still(self) -> None:
        """Nothing moves on the terminal any more."""
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None

    def note(self, text: str) -> None:
        """What a person should know, though nothing failed."""
        self.still()
        if not self.quiet:
            say(click.style("   note  ", fg="yellow"), text)

    def result(self, data: dict[str, Any], text: str) -> None:
        """The one object of --json, or `text` for people."""
        self.still()
        if self.as_json:
            text = _json({"schema_version": SCHEMA_VERSION, "command": self.command, **data})
            click.echo(text, file=self.stdout)
        else:
            click.echo(_marked(printable(text)), file=self.stdout)

    def prompt(self, text: str) -> None:
        """What was there before the model wrote, dim, on a terminal only: a file or a pipe gets what is new."""
        self.still()
        if self.stdout.isatty():
            click.echo(click.style(printable(text), dim=True), file=self.stdout, nl=False)

    def text(self, new: str) -> None:
        """What a model has written, as it comes: as it is into a file or a pipe, made printable on a terminal."""
        self.still()
        self.stdout.write(printable(new) if self.stdout.isatty() else new)
        self.stdout.flush()


class Waiting:
    """A line of a terminal that says how long a step has taken, from its third second on, until it ends."""

    FROM, EVERY = 3.0, 1.0  # seconds

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._began, self._ended = stream, time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Take the line away."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self._ended.wait(self.FROM):
            return
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            while not self._ended.wait(self.EVERY):
                seconds = click.style(f"{time.monotonic() - self._began:9.0f} s …", dim=True)
                print(f"\r{seconds}\x1b[K", end="", file=self._stream, flush=True)
            print("\r\x1b[K", end="", file=self._stream, flush=True)


def output_options(command: str) -> Callable[[F], F]:
    """Give a command --json, -q and -v, and hand it their `Output` as its first argument.

    Whatever else is printed while the command runs, by a user's own module for one, goes to stderr.
    """

    def decorate(function: F) -> F:
        @click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and everything else on stderr."
        )
        @click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
        @click.option("-v", "--verbose", is_flag=True, help="Print more detail, and tracebacks of bugs.")
        @wraps(function)
        def run(*args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
            output = Output(command, as_json, quiet, verbose, sys.stdout)
            try:
                with redirect_stdout(sys.stderr):
                    return function(output, *args, **kwargs)
            finally:
                output.still()

        return run  # type: ignore[return-value]

    return decorate


def print_error(kind: str, message: str, as_json: bool) -> None:
    """One message on stderr; with --json also the one object on stdout."""
    say(click.style("error: ", fg="red", bold=True), message)
    if as_json:
        print_json_error(kind, message)


def print_json_error(kind: str, message: str) -> None:
    """The one object of --json, of a command that failed."""
    error = {"type": kind, "message": message}
    with contextlib.suppress(OSError, ValueError):  # full, or closed
        click.echo(_json({"schema_version": SCHEMA_VERSION, "ok": False, "error": error}))


def say(mark: str, text: str) -> None:
    """On stderr. If that cannot be written either, the text is lost."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(mark + printable(text), err=True, color=in_color())


def _marked(text: str) -> str:
    """Verdicts in colour, where they begin or end a line."""
    for pattern, colour in ((r"^PASS\b|\byes$", "green"), (r"^FAIL\b|\bFAIL$|\bWRONG\b", "red")):
        text = re.sub(pattern, partial(_styled, colour), text, flags=re.MULTILINE)
    return text


def _styled(colour: str, found: re.Match[str]) -> str:
    return click.style(found[0], fg=colour, bold=True)


def _json(data: dict[str, Any]) -> str:
    """ASCII alone, so that no control character is in it but newlines."""
    return json.dumps(data, indent=2).replace("\x7f", "\\u007f")


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Columns that line up: text to the left, numbers to the right."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) or _numeric(str(row[i])) for row in rows)
        for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        padded = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(header)), line(["─" * w for w in widths]), *map(line, cells)])


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values, one a line; on a terminal a long value goes on beneath itself."""
    width = max(len(name) for name, _ in pairs)
    columns = shutil.get_terminal_size().columns if sys.__stdout__ is not None and sys.__stdout__.isatty() else None
    lines = []
    for name, value in pairs:
        if value is not None:
            start, text = f"{name.ljust(width)}  ", one_line(value)
            wrap = columns is not None and len(start) + len(text) > columns > len(start) + 20
            lines += _wrapped(start, text, columns) if wrap and columns is not None else [start + text]
    return "\n".join(lines)


def _wrapped(start: str, text: str, columns: int) -> list[str]:
    beneath = " " * len(start)
    return textwrap.wrap(text, columns, initial_indent=start, subsequent_indent=beneath, break_on_hyphens=False)


def size(count: int) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def _numeric(text: str) -> bool:
    return text[:1].isdigit() or text in ("–", "")
