"""`gptexport inspect` of checkpoints, bundles and graphs. Of engines: tests/engine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.builders import tiny_build_nanogpt, tiny_nanogpt
from tests.support.cli import Cli


def test_inspect_a_checkpoint(cli: Cli, tmp_path: Path) -> None:
    ran = cli("inspect", tiny_build_nanogpt(tmp_path / "model_00010.pt"))
    assert ran.code == 0
    assert "build-nanogpt" in ran.out
    assert "tanh (assumed" in ran.out
    assert "n_layer 3, n_head 3, n_embd 30" in ran.out


def test_inspect_what_cannot_be_read_is_5(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"GGUF" + bytes(2000))
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
