"""The documentation as data: its pages, their code, their tables, their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Code:
    """A fenced block."""

    language: str
    text: str
    line: int  # of the page, where it begins


def pages() -> list[Path]:
    """Every page: those at the top of the repository, and docs/."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("runtime/*.md"), *ROOT.glob("docs/**/*.md")])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_blocks(page: Path) -> Iterator[Code]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Code(match[1], match[2], text.count("\n", 0, match.start()) + 1)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)


def anchor(heading: str) -> str:
    """What GitHub calls a heading in a link."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next of the same level or above."""
    text = prose(page)
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found is not None, f"{name_of(page)} has no heading {heading!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str) -> list[list[str]]:
    """The rows of the first table in `text`, without its header; a cell's backticks stay."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    first = next(i for i, line in enumerate(lines) if re.fullmatch(r"[|\-: ]+", line))
    rows: list[list[str]] = []
    for line in lines[first + 1 :]:
        if re.fullmatch(r"[|\-: ]+", line):  # the next table: its header was the row before
            return rows[:-1]
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return rows


def quoted(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)
