"""The Python of README and docs/runtime.md runs as it stands, in its order; so do README's commands."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.pages import ROOT, code_blocks

README = ROOT / "README.md"
RUNTIME = ROOT / "docs" / "runtime.md"
NEEDS_GPU = re.compile(r'load\("gpt2/", "cuda"')


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of the pages: out/ckpt.pt is a nanoGPT with GPT-2's vocabulary."""
    (tmp_path / "out").mkdir()
    tiny_nanogpt(tmp_path / "out" / "ckpt.pt", vocab_size=50257, n_embd=12, n_layer=1, n_head=2, block_size=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _python(page: Path) -> list[str]:
    return [block.text for block in code_blocks(page) if block.language == "python"]


def test_python_snippets_run(here: Path, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli("onnx", "out/ckpt.pt", "-o", "gpt2/", "--tokenizer", "bytes", "-q").code == 0
    for page in (README, RUNTIME):
        names: dict[str, Any] = {}
        for number, code in enumerate(_python(page)):
            if not NEEDS_GPU.search(code):
                exec(compile(code, f"{page.name}, snippet {number}", "exec"), names)
    assert len(names["texts"]) == 8
    assert capfd.readouterr().out


def test_one_snippet_alone_needs_a_gpu() -> None:
    assert [bool(NEEDS_GPU.search(code)) for code in _python(RUNTIME)].count(True) == 1


# What the commands of each page need that an export did not make, beside out/ckpt.pt.
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in ("targets", "runtime", "parity", "tensorrt"))]
RUNS = {"README.md": 7, "targets.md": 6, "runtime.md": 3, "parity.md": 7, "tensorrt.md": 3}


def _missing(page: Path, name: str, arguments: list[str]) -> str | None:
    """What a command needs that is not here, in the words of its refusal; None: it runs."""
    if name == "trt" and importlib.util.find_spec("tensorrt_rtx") is None:
        return "tensorrt"
    if page == README and name == "generate" and importlib.util.find_spec("tiktoken") is None:
        return "tiktoken"  # README's bundle has GPT-2's tokenizer, the others have bytes
    return "GPU|driver" if name == "parity" and "gpt2.engine" in arguments else None


def _commands(page: Path) -> list[list[str]]:
    """Each line that begins with `gptexport` and a command, without its comment."""
    lines = page.read_text(encoding="utf-8").splitlines()
    shown = [re.split(r"\s+#", line)[0] for line in lines if re.match(r"(\$ |    )gptexport [a-z]+ [^#]*[\w/]", line)]
    return [shlex.split(line.strip().removeprefix("$ "))[1:] for line in shown]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_their_order(here: Path, cli: Cli, page: Path) -> None:
    if page != README:
        assert cli("onnx", "out/ckpt.pt", "-o", "gpt2/", "--tokenizer", "bytes", "-q").code == 0
    (here / "data").mkdir()
    np.arange(4000, dtype=np.uint16).tofile(here / "data" / "val.bin")
    if page.name == "parity.md":
        assert cli("trt", "gpt2/", "-o", "gpt2.engine", "--compute-capability", "8.9", "-q").code in (0, 4)
    commands = _commands(page)
    assert len(commands) == RUNS[page.name]
    for name, *arguments in commands:
        if arguments[-2:-1] == ["<"]:
            arguments = ["Once upon a time" if one == "-" else one for one in arguments[:-2]]
        done = cli(name, *arguments)
        missing = _missing(page, name, arguments)
        if missing is None:
            assert done.code == 0, f"{name} {arguments}\n{done.err}"
        else:
            assert done.code in (1, 4) and re.search(missing, done.err, re.IGNORECASE), f"{arguments}\n{done.err}"
