"""What is no regular file, or names a size that nobody has, is refused at once wherever a file can be named."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli

PATIENCE = 20  # seconds, on a busy machine: what waits for a FIFO waits for ever


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "checkpoint": ("ckpt.pt", ["inspect", "ckpt.pt"]),
    "graph": ("gpt.onnx", ["inspect", "gpt.onnx"]),
    "engine": ("gpt.engine", ["inspect", "gpt.engine"]),
    "manifest": ("b/gptexport.json", ["inspect", "b"]),
    "manifest itself": ("b/gptexport.json", ["generate", "b/gptexport.json", "--prompt-ids", "1"]),
    "config": ("hf/config.json", ["inspect", "hf"]),
    "saved measurements": ("saved.json", ["parity", "saved.json"]),
    "characters": ("meta.pkl", ["generate", "b", "--prompt", "a", "--tokenizer", "meta.pkl"]),
    "tokenizer": ("tokenizer.json", ["generate", "b", "--prompt", "a", "--tokenizer", "tokenizer.json"]),
    "SentencePiece": ("tokenizer.model", ["generate", "b", "--prompt", "a", "--tokenizer", "tokenizer.model"]),
    "vocabulary": ("vocab.txt", ["generate", "b", "--prompt", "a", "--tokenizer", "vocab.txt"]),
}


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "loop of links"])
@pytest.mark.parametrize(("name", "command"), COMMANDS.values(), ids=COMMANDS)
def test_what_is_no_regular_file_is_refused(
    name: str, command: list[str], kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    ran = cli(*command)
    assert "bug" not in ran.err
    assert ran.code in (1, 2, 4, 5) or (command[0], kind) == ("inspect", "folder"), ran.err


@pytest.mark.parametrize("name", ["val.bin", "val.npy", "val.txt"])
def test_tokens_that_are_no_regular_file_are_refused(name: str, tmp_path: Path) -> None:
    from gptexport.parity.measure.token_files import read_tokens
    from gptexport_runtime import GPTExportError
    from gptexport_runtime.text import load_tokenizer

    os.mkfifo(tmp_path / name)
    with pytest.raises(GPTExportError, match="not a regular file"):
        read_tokens(tmp_path / name, 100, load_tokenizer("bytes"))


LONG = "a" * 5000


@pytest.mark.parametrize("name", [LONG, f"{LONG}.onnx", f"{LONG}.engine", f"{LONG}.json"], ids=len)
@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "NAME"],
        ["onnx", "NAME", "-o", "x"],
        ["generate", "NAME", "--prompt-ids", "1"],
        ["parity", "NAME", "--against", "ckpt.pt"],
        ["parity", "NAME"],
        ["trt", "NAME", "-o", "x.engine"],
        ["bench", "NAME", "--against", "ckpt.pt"],
        ["generate", "b", "--prompt", "a", "--tokenizer", "NAME"],
    ],
    ids=" ".join,
)
def test_a_name_that_no_file_can_have_is_refused(
    command: list[str], name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli(*(name if word == "NAME" else word for word in command))
    assert "bug" not in ran.err
    assert ran.code in (1, 2, 4, 5)


def test_a_dataset_may_have_a_name_that_no_folder_can_have(cli: Cli, tmp_path: Path) -> None:
    path = tiny_nanogpt(tmp_path / "ckpt.pt", extra={"config": {"dataset": LONG}})
    assert cli("inspect", path).code == 0
