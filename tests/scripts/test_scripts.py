"""Scripts are where their own words, the Makefile and the code say that they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from scripts.bench.tables import shapes_of, speed, table
from scripts.gpu.parts import PARTS

ROOT = Path(__file__).parents[2]
MODULE = re.compile(r"-m (scripts[\w.]*)")
SCRIPTS = sorted(file for file in (ROOT / "scripts").rglob("*.py") if "__main__" in file.read_text())


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__main__" else parts)


@pytest.mark.parametrize("file", SCRIPTS, ids=module_of)
def test_a_script_says_how_it_is_run(file: Path) -> None:
    assert f"python -m {module_of(file)}" in file.read_text().split('"""')[1]


def test_what_code_says_of_scripts_is_there() -> None:
    """The pages of the documentation are looked after by tests/docs."""
    folders = (ROOT / name for name in ("gptexport", "runtime", "scripts"))
    code = [file for folder in folders for file in folder.rglob("*.*") if file.suffix in (".py", ".sh")]
    text = "\n".join(file.read_text() for file in [ROOT / "Makefile", ROOT / ".ci" / "run", *code])
    modules, paths = set(MODULE.findall(text)), set(re.findall(r"scripts/[\w./]*\w", text))
    assert {"scripts.demo.train", "scripts.bench.cpu"} <= modules and "scripts/check_wheels.sh" in paths
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_a_table_is_markdown() -> None:
    assert table(["B×T", "ms"], [["1×1", "3"]]) == ["| B×T | ms |", "|---|---|", "| 1×1 | 3 |"]


def test_a_speed_is_the_median_of_ratios_within_rounds() -> None:
    assert speed([1.0, 10.0, 1.0], [2.0, 20.0, 4.0]) == 2.0
    assert shapes_of("1x1,8x512") == [(1, 1), (8, 512)]


def test_what_a_lent_machine_is_driven_by_asks_for_parts_that_there_are() -> None:
    script = (ROOT / "scripts" / "gpu" / "go.sh").read_text()
    asked = [part for parts in re.findall(r"--only (\S+)", script) for part in parts.split(",")]
    assert {"bench", "tuned", "xl", "kernels", "parity"} <= set(asked) <= set(PARTS)
    for deadline in re.findall(r"--deadline (\d+)", script):
        assert int(deadline) < 600  # a command there is ended after ten minutes
