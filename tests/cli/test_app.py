"""What holds of every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gptexport.cli.app as app
from gptexport import checkpoints, doctor
from gptexport_runtime import BackendUnavailableError
from tests.support.builders import tiny_build_nanogpt, tiny_nanogpt
from tests.support.cli import Cli

COMMANDS = sorted(app.gptexport.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples_and_knows_the_common_options(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0
    assert 0 < ran.out.index("Examples:") < ran.out.index("Options:")
    assert all(option in ran.out for option in ("--json", "--quiet", "--verbose"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["onnx", "--help"], ["parity", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """torch alone takes seconds."""
    code = (
        "import sys; from gptexport.cli.app import run; run(sys.argv[1:]);"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'google'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("[]\n")


def test_a_bug_is_one_message_and_a_traceback_only_with_v(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_path: str) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(checkpoints, "describe_checkpoint", broken)
    ran = cli("inspect", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert "surprise\nThis is a bug in gptexport" in ran.err
    with pytest.raises(ZeroDivisionError):
        cli("inspect", tmp_path, "-v")


def test_an_unavailable_backend_is_4(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise BackendUnavailableError("no ONNX Runtime")

    monkeypatch.setattr(doctor, "probe_providers", unavailable)
    assert cli("doctor").code == 4


def test_doctor_tries_the_providers(cli: Cli) -> None:
    ran = cli("doctor", "--json")
    data = json.loads(ran.out)
    assert ran.code == 0
    assert data["versions"]["torch"]
    assert data["cores"] >= 1
    assert {p["name"]: p["loads"] for p in data["providers"]}["cpu"] is True
    assert all(p["loads"] or p["reason"] for p in data["providers"])


def test_inspect_a_checkpoint(cli: Cli, tmp_path: Path) -> None:
    ran = cli("inspect", tiny_build_nanogpt(tmp_path / "model_00010.pt"))
    assert ran.code == 0
    assert "build-nanogpt" in ran.out
    assert "tanh (assumed" in ran.out
    assert "n_layer 3, n_head 3, n_embd 30" in ran.out


def test_inspect_what_cannot_be_read_is_5(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes((20240326).to_bytes(4, "little") + (3).to_bytes(4, "little") + bytes(2000))
    ran = cli("inspect", tmp_path / "model.bin", "--json")
    assert (ran.code, json.loads(ran.out)["ok"]) == (5, False)


def test_inspect_a_bundle_and_its_graph(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    assert cli("onnx", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", out, "-q").code == 0
    ran = cli("inspect", out, "--verify")
    assert ran.code == 0
    assert "input_ids (B,T) -> logits (B,T,97)" in ran.out
    assert "not checked: gptexport parity" in ran.out
    data = json.loads(cli("inspect", out / "logits.onnx", "--json").out)
    assert (data["kind"], data["inputs"], data["block_size"]) == ("graph", {"input_ids": ["B", "T"]}, 17)

    weights = bytearray((out / "weights.data").read_bytes())
    weights[5000] ^= 1
    (out / "weights.data").write_bytes(weights)
    assert cli("inspect", out).code == 0, "one flipped bit shows only with --verify"
    ran = cli("inspect", out, "--verify")
    assert ran.code == 1
    assert "weights.data has sha256" in ran.out
    (out / "logits.onnx").write_bytes(b"not ONNX")
    ran = cli("inspect", out, "--json")
    assert ran.code == 1
    assert "logits.onnx has 8 bytes" in json.loads(ran.out)["problems"][0]


def test_inspect_something_that_is_not_onnx(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00\xff not ONNX")
    ran = cli("inspect", tmp_path / "bad.onnx")
    assert (ran.code, "is not an ONNX file" in ran.err) == (1, True)
