"""The command line, run in this process: what the fixture `cli` gives a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Ran:
    """One run of the command line."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    """`cli("inspect", path)`: runs `gptexport inspect PATH`."""

    def __call__(self, *arguments: object) -> Ran: ...
