"""`gptexport onnx` as a person, or a script, meets it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.builders import random_weights, tiny_nanogpt
from tests.support.cli import Cli

COMMAND = [sys.executable, "-m", "gptexport"]


def test_export_says_what_it_did_and_what_to_do_next(cli: Cli, tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    ran = cli("onnx", ckpt, "-o", tmp_path / "gpt")
    assert ran.code == 0
    written = sum(file.stat().st_size for file in (tmp_path / "gpt").iterdir() if file.suffix != ".json")
    size = f"{written / 1e3:.1f} kB"
    assert ran.out == f"{tmp_path / 'gpt'}: {size}\nnext: gptexport parity {tmp_path / 'gpt'} --against {ckpt}\n"
    assert "3 of 3 Attention, 7 of 7 LayerNormalization, 3 of 3 Gelu" in ran.err
    assert "GELU taken as erf" in ran.err


def test_what_weights_alone_do_not_say_is_an_option(cli: Cli, tmp_path: Path) -> None:
    torch.save(random_weights(), tmp_path / "weights.pt")
    ran = cli("onnx", tmp_path / "weights.pt", "-o", tmp_path / "gpt.onnx")
    assert (ran.code, ran.out) == (1, "") and "how many heads the attention has" in ran.err
    ran = cli("onnx", tmp_path / "weights.pt", "-o", tmp_path / "gpt", "--n-head", 3, "--graphs", "logits")
    assert ran.code == 0, ran.err
    assert "is a folder" not in ran.err
    ran = cli("parity", tmp_path / "gpt", "--against", tmp_path / "weights.pt", "--n-head", 3, "--quick")
    assert ran.code == 0, ran.err
    ran = cli("onnx", tmp_path / "weights.pt", "-o", tmp_path / "gpt.pt", "--n-head", 3, "--graphs", "logits")
    assert ran.code == 0 and "gpt.pt is a folder, as every bundle is" in ran.err
    assert cli("onnx", tmp_path / "weights.pt", "-o", tmp_path / "x.onnx", "--n-head", "0").code == 2
    assert cli("onnx", tmp_path / "weights.pt", "-o", tmp_path / "x.onnx", "--softcap", "16").code == 2


def test_json_is_one_object_on_stdout(cli: Cli, tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=61)
    ran = cli("onnx", ckpt, "-o", tmp_path / "gpt.onnx", "--json", "-q", "--vocab-size", 50)
    data = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert (data["schema_version"], data["command"], data["ok"]) == (1, "onnx", True)
    assert data["model"]["vocab_size"] == 50
    assert data["check_relative_rms"] < 1e-5


def test_what_a_users_module_prints_is_not_data(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch.nn as nn\n"
        "class Chatty(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.emb = nn.Embedding(11, 11)\n"
        "        self.block_size = 8\n"
        "    def forward(self, idx):\n"
        "        print('hello')\n"
        "        return self.emb(idx)\n"
    )
    ran = cli("onnx", f"{tmp_path / 'mine.py'}:Chatty", "-o", tmp_path / "gpt", "--json", "-q")
    assert (ran.code, json.loads(ran.out)["ok"]) == (0, True)
    assert "hello" in ran.err


def trap(path: Path, canary: Path) -> Path:
    """A checkpoint that would run code."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {canary}",)

    torch.save({"model": {}, "model_args": Evil()}, path)
    return path


def truncated(path: Path) -> Path:
    data = tiny_nanogpt(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda t: trap(t / "trap.pt", t / "canary"), 5, "posix.system"),
        (lambda t: truncated(t / "ckpt.pt"), 1, "truncated or corrupt"),
        (lambda t: written(t / "empty.pt", b""), 5, "empty"),
        (lambda t: written(t / "notes.txt", b"to do: sleep\n" * 9), 5, "notes.txt"),
        (lambda t: t / "nowhere.pt", 1, "no such file or folder"),
        (lambda t: tiny_nanogpt(t / "c.pt", weights={"transformer.wte.weight": torch.zeros(3, 3)}), 1, "ln_f.weight"),
    ],
)
def test_bad_checkpoints_fail_with_one_message_and_write_nothing(
    cli: Cli, tmp_path: Path, make: Callable[[Path], Path], code: int, message: str
) -> None:
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    ran = cli("onnx", path, "-o", tmp_path / "gpt", "-q")
    assert ran.code == code, ran.err
    assert message in ran.err
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert sorted(tmp_path.iterdir()) == before, "something was written, or the trap's code ran"


def test_errors_are_json_too(cli: Cli, tmp_path: Path) -> None:
    ran = cli("onnx", written(tmp_path / "empty.pt", b""), "-o", tmp_path / "gpt", "--json", "-q")
    data = json.loads(ran.out)
    assert (data["ok"], data["error"]["type"], ran.code) == (False, "UnknownCheckpointError", 5)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x.pt"],
        ["x.pt", "-o", "y", "--dtype", "int3"],
        ["x.pt", "-o", "y", "--opset", "7"],
        ["x.pt", "-o", "y", "--vocab-size", "0"],
    ],
)
def test_usage_errors_are_2(cli: Cli, arguments: list[str]) -> None:
    ran = cli("onnx", *arguments)
    assert ran.code == 2
    assert "Usage: gptexport onnx" in ran.err


def test_an_existing_output_is_refused_at_once(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "gptexport.json").write_text("{}")
    ran = cli("onnx", tmp_path / "no.pt", "-o", tmp_path / "gpt")
    assert (ran.code, "--force" in ran.err) == (1, True)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The system itself refuses to write on, in the middle of the weights."""
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    out = tmp_path / "out"
    out.mkdir()
    ran = subprocess.run(
        [*COMMAND, "onnx", str(ckpt), "-o", str(out / "gpt"), "-q"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    assert "File too large" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen([*COMMAND, "onnx", str(ckpt), "-o", str(out / "gpt")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "tracing" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    time.sleep(0.3)
    assert list(out.iterdir()), "the stage is not where it can be renamed from"
    process.send_signal(sent)
    said += process.stderr.read()
    assert process.wait() == 130
    assert "Traceback" not in said
    assert said.endswith("interrupted; nothing was written.\n")
    assert list(out.iterdir()) == []
