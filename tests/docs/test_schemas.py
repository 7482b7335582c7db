"""What --json prints is what docs/schemas says, of every command, whether it succeeds or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gptexport.checkpoints import load_checkpoint
from gptexport.cli.app import gptexport
from gptexport.export import export_onnx
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.fake_engine import write_engine
from tests.support.faults import scale_weight, tampered
from tests.support.pages import ROOT
from tests.support.web import npm_packages

SCHEMAS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "docs" / "schemas").glob("*.json")
}
Arguments = Callable[[Path], list[object]]


def problems(name: str, answer: dict[str, Any]) -> list[str]:
    errors = Draft202012Validator(SCHEMAS[name]).iter_errors(answer)
    return [f"{error.json_path}: {error.message}" for error in errors]


def closed(schema: Any) -> Any:
    """The schema, in which an object has no more properties than are described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"additionalProperties": False} if "properties" in schema and "oneOf" not in schema else {}
    return {**{name: closed(value) for name, value in schema.items()}, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("schemas")
    checkpoint = tiny_nanogpt(made / "ckpt.pt")
    bundle = export_onnx(load_checkpoint(str(checkpoint)), made / "gpt").path
    tampered(bundle, made / "wrong", scale_weight("ln_f.weight", 1.01))
    write_engine(made)
    npm_packages(made)
    (made / "ids.jsonl").write_text('{"ids": [1, 2, 3]}\n{"ids": [4, 5]}\n')
    return made


SUCCEED: dict[str, Arguments] = {
    "onnx": lambda f: [f / "ckpt.pt", "-o", f / "new"],
    "parity": lambda f: [f / "gpt", "--against", f / "ckpt.pt", "--quick"],
    "generate": lambda f: [f / "gpt", "--prompt-ids", "1,2", "--max-new-tokens", 2],
    "score": lambda f: [f / "gpt", f / "ids.jsonl", "-o", f / "scores", "--compare", f / "wrong", "--batch-tokens", 64],
    "triton": lambda f: [f / "gpt", "-o", f / "repository"],
    "web": lambda f: [f / "gpt", "-o", f / "site", "--packages", f],
    "bench": lambda f: [f / "gpt", "--rounds", 1, "--shapes", "1x1"],
    "doctor": lambda f: [],
    "gguf": lambda f: [f / "ckpt.pt", "-o", f / "m.gguf"],
    "hf": lambda f: [f / "ckpt.pt", "-o", f / "hf"],
}
INSPECTED = ["ckpt.pt", "gpt", "gpt/logits.onnx", "gpt.engine", "wrong"]


def test_every_command_has_a_schema() -> None:
    commands = {
        name for name, command in gptexport.commands.items() if any(p.name == "as_json" for p in command.params)
    }
    assert {*SCHEMAS} == commands | {"error"} and {*SUCCEED, "inspect", "trt", "tune"} == commands, (
        "tune is in tests/tune"
    )
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("command", SUCCEED)
def test_what_succeeds(cli: Cli, folder: Path, command: str) -> None:
    """And nothing is said that is not described."""
    ran = cli(command, *SUCCEED[command](folder), "--json", "-q")
    answer = json.loads(ran.out)
    assert ran.code == 0 and problems(command, answer) == []
    assert [error.message for error in Draft202012Validator(closed(SCHEMAS[command])).iter_errors(answer)] == []


@pytest.mark.parametrize("name", INSPECTED)
def test_what_is_inspected(cli: Cli, folder: Path, name: str) -> None:
    assert problems("inspect", json.loads(cli("inspect", folder / name, "--json").out)) == []


def test_a_failed_parity(cli: Cli, folder: Path) -> None:
    ran = cli("parity", folder / "wrong", "--against", folder / "ckpt.pt", "--json", "-q")
    answer = json.loads(ran.out)
    assert ran.code == 3 and problems("parity", answer) == [] and answer["divergence"] and answer["blame"]


@pytest.mark.parametrize("arguments", [["inspect", "nowhere"], ["onnx"], ["nothing"]], ids=" ".join)
def test_what_fails(cli: Cli, arguments: list[str]) -> None:
    ran = cli(*arguments, "--json")
    assert ran.code != 0 and problems("error", json.loads(ran.out)) == []
