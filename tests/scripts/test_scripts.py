"""Scripts are found where their own words, the Makefile and the documentation say that they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from scripts.bench.tables import shapes_of, speed, table

ROOT = Path(__file__).parents[2]
MODULE = re.compile(r"-m (scripts[\w.]*)")
SCRIPTS = sorted(file for file in (ROOT / "scripts").rglob("*.py") if "__main__" in file.read_text())


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__main__" else parts)


@pytest.mark.parametrize("file", SCRIPTS, ids=module_of)
def test_a_script_says_how_it_is_run(file: Path) -> None:
    assert f"python -m {module_of(file)}" in file.read_text().split('"""')[1]


def test_what_is_said_to_be_run_exists() -> None:
    written = [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "scripts").rglob("*.py")]
    named = {name for file in written for name in MODULE.findall(file.read_text())}
    assert len(named) >= len(SCRIPTS)
    assert [name for name in sorted(named) if importlib.util.find_spec(name) is None] == []


def test_no_script_is_named_by_a_path_that_is_gone() -> None:
    written = [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / ".ci" / "run"]
    product = [*(ROOT / "gptexport").rglob("*.py"), *(ROOT / "runtime").rglob("*.py")]
    named = {path for file in written + product for path in re.findall(r"scripts/[\w./]*\w", file.read_text())}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_a_table_is_markdown() -> None:
    assert table(["B×T", "ms"], [["1×1", "3"]]) == ["| B×T | ms |", "|---|---|", "| 1×1 | 3 |"]


def test_a_speed_is_the_median_of_ratios_within_rounds() -> None:
    assert speed([1.0, 10.0, 1.0], [2.0, 20.0, 4.0]) == 2.0
    assert shapes_of("1x1,8x512") == [(1, 1), (8, 512)]
