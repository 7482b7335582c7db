"""A real browser runs the page. scripts.check_web does the same with more models, and times it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport.web import write_site
from gptexport.web.browser import VARIABLE, find_browser
from gptexport.web.check import check_site, open_page
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.errors import ExecutionError
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def browser() -> str:
    try:
        return find_browser(None)
    except BackendUnavailableError as error:
        if VARIABLE in os.environ:  # it was to be run
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("browser")
    checkpoint = load_checkpoint(str(tiny_nanogpt(made / "ckpt.pt", vocab_size=256, block_size=64)))
    export_onnx(checkpoint, made / "gpt", tokenizer=tokenizer_to_bundle("bytes"))
    if shutil.which("npm") is None:
        pytest.skip("no npm, which fetches what the page needs")
    write_site(made / "gpt", made / "site")
    return made


def test_the_page_is_the_same_model(browser: str, folder: Path) -> None:
    found = check_site(folder / "site", str(folder / "ckpt.pt"), browser=browser, quick=True)
    assert found.parity and found.different == () and found.encoded_otherwise == ()


def test_another_model_fails(cli: Cli, browser: str, folder: Path, tmp_path: Path) -> None:
    other = tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=256, block_size=64, seed=1)
    ran = cli("web", folder / "site", "--check", "--against", other, "--browser", browser, "--quick", "--json", "-q")
    assert ran.code == 3 and json.loads(ran.out)["check"]["passed"] is False


def test_one_thread_without_the_headers(browser: str, folder: Path) -> None:
    with open_page(folder / "site", browser, isolated=False) as page:
        assert page.threads == 1 and len(page.json("greedy", ids=[1, 2], count=4)) == 4


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("weights.data", b"another", "weights.data is damaged: it has 7 bytes, the manifest says"),
        ("logits.onnx", None, "logits.onnx is missing: the server answers 404. Copy the site again."),
    ],
)
def test_what_is_wrong_is_told(
    browser: str, folder: Path, tmp_path: Path, name: str, data: bytes | None, says: str
) -> None:
    site = write_site(folder / "gpt", tmp_path / "site").path
    if data is None:
        (site / "model" / name).unlink()
    else:
        (site / "model" / name).write_bytes(data)
    with pytest.raises(ExecutionError, match=says), open_page(site, browser):
        pass
