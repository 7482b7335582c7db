"""The Python of README and docs/runtime.md runs as it stands, in its order; so do README's commands."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

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


@pytest.mark.slow
def test_readme_commands_run_in_their_order(here: Path, cli: Cli) -> None:
    ran = []
    for block in code_blocks(README):
        for line in block.text.splitlines():
            if not line.startswith("$ gptexport"):
                continue
            name, *arguments = shlex.split(line.removeprefix("$ "), comments=True)[1:]
            done = cli(name, *arguments)
            if name == "generate" and importlib.util.find_spec("tiktoken") is None:
                assert done.code == 4 and "tiktoken" in done.err
            elif name == "trt" and importlib.util.find_spec("tensorrt_rtx") is None:
                assert done.code == 4 and "tensorrt" in done.err.lower()
            else:
                assert done.code == 0, f"{line}\n{done.err}"
            ran.append(name)
    assert ran == ["onnx", "parity", "generate", "onnx", "onnx", "onnx", "trt"]
