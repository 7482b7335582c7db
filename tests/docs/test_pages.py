"""Every link of the documentation leads somewhere, every path it names exists, every command it shows can be parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from gptexport.cli.app import gptexport
from tests.support.pages import ROOT, anchor, headings, name_of, pages, prose, quoted

PAGES = {name_of(page): page for page in pages()}
# what belongs to the repository, in contrast to what a user would have: out/ckpt.pt, gpt2/
OURS = re.compile(
    r"(?<![\w/.-])(?:\.venv[\w-]*/bin/)?((?:gptexport|gptexport_runtime|runtime|scripts|docs|tests)/[\w./-]*)"
)
HISTORY = "CHANGELOG.md"  # which names what is gone


def _command_lines() -> list[tuple[str, str]]:
    """Every line of a block that begins with `gptexport`, without its comment, and the page it is on."""
    return [
        (name, re.split(r"\s+#|\s+<", line.strip().removeprefix("$ "))[0])
        for name, page in PAGES.items()
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"\$ gptexport \w|    gptexport \w", line)
    ]


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_lead_to_files_and_headings(name: str) -> None:
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name} links to {target}"
        assert linked.is_relative_to(ROOT)
        if fragment:
            assert fragment in map(anchor, headings(linked)), f"{name} links to {target}, which has no such heading"


@pytest.mark.parametrize("name", [name for name in PAGES if name != HISTORY])
def test_paths_that_are_named_exist(name: str) -> None:
    for path in OURS.findall(PAGES[name].read_text(encoding="utf-8")):
        assert _exists(path.rstrip(".,:")), f"{name} names {path}"


@pytest.mark.parametrize("name", PAGES)
def test_modules_that_are_run_exist(name: str) -> None:
    """`python -m scripts.bench.peers`."""
    for module in re.findall(r"-m ((?:scripts|gptexport)[\w.]*)", PAGES[name].read_text(encoding="utf-8")):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{name} runs {module}"


def test_pages_that_the_code_cites_exist() -> None:
    sources = [
        path for folder in ("gptexport", "runtime", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    cited = {
        (name_of(path), page)
        for path in [*sources, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "runtime" / "pyproject.toml"]
        for page in re.findall(r"\bdocs/[a-z\d_/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert cited
    for source, page in cited:
        assert (ROOT / page).is_file(), f"{source} cites {page}"


def _exists(path: str) -> bool:
    where = ROOT / "runtime" / path if path.startswith("gptexport_runtime/") else ROOT / path
    return where.exists() or _is_an_output(path)


def _is_an_output(path: str) -> bool:
    """`--out docs/measurements/cpu` writes cpu.md and its companions."""
    return path.startswith("docs/measurements/") and (ROOT / f"{path}.md").exists()


@pytest.mark.parametrize("page, command", _command_lines())
def test_command_lines_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As click would, without running anything."""
    name, *arguments = shlex.split(command)[1:]
    found = _command(page, name)
    for parameter in found.params:
        if isinstance(parameter.type, click.Path):  # the files that a page names are a user's
            monkeypatch.setattr(parameter.type, "exists", False)
    found.make_context(name, arguments)


@pytest.mark.parametrize("name", PAGES)
def test_options_that_are_mentioned_exist(name: str) -> None:
    """In a sentence a command stands without all of its arguments: `gptexport onnx --dtype`."""
    for mentioned in quoted(prose(PAGES[name])):
        words = mentioned.split()
        if words[:1] != ["gptexport"] or not any(word.startswith("--") for word in words[2:]):
            continue
        known = {option for parameter in _command(name, words[1]).params for option in parameter.opts}
        for option in words[2:]:
            assert not option.startswith("-") or option in known | {"--help"}, f"{name}: {mentioned}"


def _command(page: str, name: str) -> click.Command:
    found = gptexport.commands.get(name)
    assert found is not None, f"{page}: there is no command {name}"
    return found


def test_architecture_draws_the_folders_that_exist() -> None:
    """Every name in its tree is there, at that place."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text[text.index("    gptexport/\n") : text.index("## Four axes")]
    folders: list[tuple[int, Path]] = [(0, ROOT)]
    for line in tree.splitlines():
        names = re.findall(r"[\w/.]+", line.strip().split("  ")[0])
        if not names:
            continue
        indent = len(line) - len(line.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1]
        for item in names:
            assert (parent / item).exists(), f"docs/architecture.md draws {(parent / item).relative_to(ROOT)}"
        if names[-1].endswith("/"):
            folders.append((indent, parent / names[-1]))


def test_the_readme_is_a_front_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110 and len(text.split()) <= 1000
    assert "make demo" in text and "make test" in text and "docs/limits.md" in text[: len(text) // 3]


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+)", prose(page)):
            if not re.match(r"[a-z]+:", target):
                waiting.append((page.parent / target).resolve())
    assert sorted(name_of(page) for page in reached if page.is_file()) == sorted(
        name for name in PAGES if not name.startswith("runtime/")
    )
