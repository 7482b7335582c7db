"""The page's answers are judged as a session's are. A program answers for it; test_browser.py has a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport.web import write_site
from gptexport.web.browser import find_browser
from gptexport.web.check import check_site
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.errors import ArtifactError, ExecutionError
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.web import browser_of, npm_packages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("web")
    checkpoint = load_checkpoint(str(tiny_nanogpt(made / "ckpt.pt", vocab_size=256)))
    export_onnx(checkpoint, made / "gpt", tokenizer=tokenizer_to_bundle("bytes"))
    write_site(made / "gpt", made / "site", npm_packages=npm_packages(made))
    return made


def test_a_right_page_passes(folder: Path) -> None:
    """By parity's own verdict, which is not recorded: it is of another runtime."""
    browser = browser_of(folder / "right", folder / "site")
    found = check_site(folder / "site", str(folder / "ckpt.pt"), browser=browser)
    assert found and found.parity.verdict.passed and found.different == ()
    assert any(i.name.startswith("decode") for i in found.parity.verdict.invariances), "its cache is measured too"
    assert Manifest.from_json((folder / "site" / "model" / "gptexport.json").read_text()).parity is None


def test_a_wrong_page_fails(cli: Cli, folder: Path) -> None:
    browser = browser_of(folder / "wrong", folder / "site", wrong=1e-3)
    ran = cli("web", folder / "site", "--check", "--against", folder / "ckpt.pt", "--browser", browser, "--json", "-q")
    answer = json.loads(ran.out)
    assert ran.code == 3 and answer["check"]["passed"] is False and answer["check"]["parity"]["reasons"]


def test_greedy_texts_that_differ_fail(folder: Path) -> None:
    """Though every logit is right: the page chooses by code of its own."""
    program = folder / "other"
    browser = browser_of(program, folder / "site")
    program.write_text(program.read_text().replace("[0].tolist()", "[0].tolist()[::-1]"))
    found = check_site(folder / "site", str(folder / "ckpt.pt"), browser=browser, quick=True)
    assert found.parity and not found and not any(difference.tie for difference in found.different)


def test_a_tokenizer_that_differs_fails(cli: Cli, folder: Path) -> None:
    program = folder / "tokenizer"
    browser = browser_of(program, folder / "site")
    program.write_text(program.read_text().replace("list(text.encode())", "list(text.strip().encode())"))
    against = ("--check", "--against", folder / "ckpt.pt", "--browser", browser, "--quick")
    ran = cli("web", folder / "site", *against)
    assert ran.code == 3 and "FAIL  the page's tokenizer makes other ids of 6 texts" in ran.out


def test_what_the_page_says_is_told(folder: Path) -> None:
    program = folder / "broken"
    browser = browser_of(program, folder / "site")
    program.write_text(program.read_text().replace('"open": lambda: {', '"open": lambda: 1 / 0 and {'))
    with pytest.raises(ExecutionError, match=r"the page says: division by zero"):
        check_site(folder / "site", str(folder / "ckpt.pt"), browser=browser)


def test_without_a_browser_or_a_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"gpt is not a site\. Write one with"):
        check_site(folder / "gpt", str(folder / "ckpt.pt"))
    with pytest.raises(BackendUnavailableError, match=r"^nowhere is not a program: expected Chromium, Chrome or Edge"):
        find_browser("nowhere")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("GPTEXPORT_BROWSER", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"^none of chromium, "):
        find_browser(None)
