"""What the two distributions and the Makefile say of one another is one thing said once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import gptexport
import gptexport_runtime

ROOT = Path(__file__).parents[1]


def pyproject(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


TOOLKIT, RUNTIME = pyproject(ROOT), pyproject(ROOT / "runtime")


def name_of(requirement: str) -> str:
    """`TensorRT_RTX[x]>=1.7` as `tensorrt-rtx`."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_the_toolkit_takes_the_runtime_of_its_own_version() -> None:
    assert f"gptexport-runtime=={gptexport_runtime.__version__}" in TOOLKIT["project"]["dependencies"]
    assert gptexport.__version__ == gptexport_runtime.__version__


def test_both_read_their_version_from_the_package() -> None:
    for data, package in ((TOOLKIT, "gptexport"), (RUNTIME, "gptexport_runtime")):
        assert "version" in data["project"]["dynamic"]
        assert data["tool"]["setuptools"]["dynamic"]["version"] == {"attr": f"{package}.__version__"}


def test_the_toolkit_passes_every_extra_of_the_runtime_on() -> None:
    extras = TOOLKIT["project"]["optional-dependencies"]
    for name in RUNTIME["project"]["optional-dependencies"]:
        assert extras[name] == [f"gptexport-runtime[{name}]"]


def test_every_tool_of_development_is_pinned_and_listed_once() -> None:
    pins = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    tools = {name_of(tool) for tool in TOOLKIT["dependency-groups"]["dev"]}
    assert tools <= pins
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert installs and not any(re.search(rf"\s{tool}\b", line) for tool in tools for line in installs)


def test_the_runtime_carries_the_license() -> None:
    assert (ROOT / "runtime" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_a_page_of_the_runtime_is_there() -> None:
    assert RUNTIME["project"]["readme"] == "README.md"
    text = (ROOT / "runtime" / "README.md").read_text(encoding="utf-8")
    missing = [name for name in vars(gptexport_runtime.errors) if name.endswith("Error") and name not in text]
    assert missing == [], "the page names every error that a caller may meet"
