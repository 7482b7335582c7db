"""No control character of a file reaches the terminal, and no state of a stream is a bug."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gptexport.cli.output import facts, table
from gptexport.cli.terminal import ERRORS, one_line, printable
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli

OWNED = "\x1b]0;owned\x07\x9b31m\u202e\udc80\x7f"
ROOT = Path(__file__).parents[2]


def raw_controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"} | ({"\u202e"} & set(text))


def test_every_control_character_is_spelled_out_and_nothing_else() -> None:
    for point in range(0x3000):
        c = chr(point)
        control = unicodedata.category(c) in ("Cc", "Zl", "Zp") and c not in "\n\t"
        mark = unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        if control or mark:
            assert printable(c).isascii() and printable(c).startswith("\\"), hex(point)
        elif c not in "\u061c\u200e\u200f":
            assert printable(c) == c, hex(point)
    assert printable("a\nb\x1bc") == "a\nb\\x1bc"
    assert one_line("a\nPASS: it is the same model") == "a\\nPASS: it is the same model"


def test_a_name_makes_no_line_of_its_own() -> None:
    assert "\n" not in facts([("model", "x\nparity  passed")])
    assert len(table([("a\nb", 1)], ("name", "number")).splitlines()) == 3


def test_what_an_encoding_lacks_is_replaced() -> None:
    assert "2 × 3 … ─ ü\udc80".encode("ascii", ERRORS) == b"2 x 3 ... - ??"
    assert "2 × 3 …".encode("latin-1", ERRORS) == b"2 \xd7 3 ..."


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_names_in_a_checkpoint_are_not_printed_raw(cli: Cli, tmp_path: Path, arguments: Sequence[str]) -> None:
    path = tiny_nanogpt(tmp_path / "ckpt.pt")
    data = torch.load(path, weights_only=True)
    for place in ("model", "model_args", "config"):
        changed = dict(data)
        changed[place] = {**data.get(place, {}), f"transformer.h.0.{OWNED}": torch.zeros(2) if place == "model" else 1}
        torch.save(changed, path)
        ran = cli("inspect", path, *arguments)
        assert not raw_controls(ran.out + ran.err), place
        assert "bug in gptexport" not in ran.err
        assert "\\x1b" in ran.out + ran.err or "\\u001b" in ran.out or place == "config"


def test_names_in_a_manifest_are_not_printed_raw(cli: Cli, small_bundle: Path) -> None:
    manifest = json.loads((small_bundle / "gptexport.json").read_text())
    manifest["left_out"] = {OWNED: OWNED}
    manifest["producer"][OWNED] = OWNED
    manifest["source"]["format"] = OWNED
    (small_bundle / "gptexport.json").write_text(json.dumps(manifest))
    for arguments in ([], ["--json"]):
        ran = cli("inspect", small_bundle, *arguments)
        assert ran.code == 0 and not raw_controls(ran.out + ran.err)


def test_errors_about_an_argument_are_not_printed_raw(cli: Cli) -> None:
    for command in (["inspect", f"/nowhere/{OWNED}"], ["inspect", "x", f"--{OWNED}"], [OWNED], ["parity", OWNED]):
        ran = cli(*command)
        assert ran.code in (1, 2, 5) and not raw_controls(ran.out + ran.err)


def python(code: str, *, env: dict[str, str] | None = None, stdout: str = "PIPE") -> subprocess.CompletedProcess[bytes]:
    """Run code in a process of its own, its stdout closed, full, without a reader, or a pipe."""
    shell = {"closed": ">&-", "full": "> /dev/full", "unread": "| head -c 0", "PIPE": ""}[stdout]
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = ["sh", "-c", f'"$0" -c "$1" {shell}', sys.executable, code]
    return subprocess.run(command, capture_output=True, env={**os.environ, **paths, **(env or {})}, cwd=ROOT)


def call(*arguments: object) -> str:
    return f"import sys; sys.argv[1:] = {[str(a) for a in arguments]!r}\nfrom gptexport.cli.app import main; main()"


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("env", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_terminal_of_any_encoding_is_told(env: dict[str, str], small_bundle: Path) -> None:
    ran = python(call("inspect", small_bundle), env=env)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"bundle" in ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("command", [["--help"], ["inspect", "BUNDLE"], ["inspect", "BUNDLE", "--json"]])
def test_a_full_device_is_one_message(command: list[str], small_bundle: Path) -> None:
    ran = python(call(*(str(small_bundle) if part == "BUNDLE" else part for part in command)), stdout="full")
    assert ran.returncode == 1
    assert ran.stderr.decode() == "error: the output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("stdout", ["closed", "unread"])
@pytest.mark.parametrize("command", [["inspect", "BUNDLE"], ["inspect", "/nowhere", "--json"]])
def test_nobody_who_reads_is_no_bug(command: list[str], stdout: str, small_bundle: Path) -> None:
    ran = python(call(*(str(small_bundle) if part == "BUNDLE" else part for part in command)), stdout=stdout)
    assert not [word for word in (b"Traceback", b"bug", b"Exception ignored") if word in ran.stderr]


def test_a_traceback_is_printable_too(small_bundle: Path) -> None:
    code = "import gptexport.artifacts as artifacts\n"
    code += f"def broken(*_, **__): raise ZeroDivisionError({OWNED!r})\nartifacts.find = broken\n"
    ran = python(code + call("inspect", small_bundle, "-v"))
    assert ran.returncode == 1
    assert b"ZeroDivisionError: \\x1b]0;owned\\x07" in ran.stderr and b"\x1b" not in ran.stderr


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "tests" / "runtime" / "data" / "tiny", tmp_path / "tiny"))
