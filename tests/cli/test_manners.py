"""How the command line behaves towards a person: colours, widths, names that are nearly right, what comes next."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptexport.cli.output import Output, Waiting
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli

pty = pytest.importorskip("pty", reason="there are no terminals to try on this system")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx
    from gptexport.tokenizers import tokenizer_to_bundle

    folder = tmp_path_factory.mktemp("manners")
    checkpoint = load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt", vocab_size=256)))
    return export_onnx(checkpoint, folder / "gpt", tokenizer=tokenizer_to_bundle("bytes")).path


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """What `gptexport ARGUMENTS` shows on a terminal, as it is sent there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gptexport", *map(str, arguments)],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_what_is_shown_fits_the_terminal(bundle: Path, columns: int) -> None:
    shown = on_a_terminal("doctor", COLUMNS=str(columns)) + on_a_terminal("inspect", bundle, COLUMNS=str(columns))
    lines = ANSI.sub("", shown).splitlines()
    assert max(map(len, lines)) <= columns and len(lines) < 80
    assert sum("decode.onnx" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(bundle: Path, environment: dict[str, str], coloured: bool) -> None:
    shown = on_a_terminal("generate", bundle, "--prompt", "ab", "--max-new-tokens", 3, **environment)
    assert bool(ANSI.search(shown)) == coloured
    if coloured:
        assert "\x1b[2mab\x1b[0m" in shown, "the prompt is dim, what is new is not"


def test_a_pipe_gets_what_is_new_alone(cli: Cli, bundle: Path) -> None:
    ran = cli("generate", bundle, "--prompt", "ab", "--max-new-tokens", 3, "--temperature", 0)
    ids = json.loads(cli("generate", bundle, "--prompt", "ab", "--max-new-tokens", 3, "--temperature", 0, "--json").out)
    assert ran.out == ids["samples"][0]["text"] + "\n"
    assert re.search(r"3 new tokens in [\d.]+ s, reading the prompt of 2 included: [\d,]+ a second", ran.err)


def test_a_long_step_counts_on(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waiting, "FROM", 0.01)
    monkeypatch.setattr(Waiting, "EVERY", 0.01)
    waiting = Waiting(sys.stderr)
    time.sleep(0.2)
    waiting.end()
    shown = capfd.readouterr().err
    assert "0 s …" in shown and shown.endswith("\r\x1b[K"), "it is gone when the step ends"
    output = Output("onnx", as_json=False, quiet=False, verbose=False, stdout=sys.stdout)
    output.step("a step")
    assert "…" not in capfd.readouterr().err, "no terminal, no movement"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["onnx", "x", "-o", "y", "--dtype", "bf16"], "Did you mean 'bfloat16'?"),
        (["onnx", "x", "-o", "y", "--dtype", "fp16"], "Did you mean 'float16'?"),
        (["onnx", "x", "-o", "y", "--target", "gpu"], "Did you mean 'cuda'?"),
        (["onnx", "x", "-o", "y", "--target", "portabel"], "Did you mean 'portable'?"),
        (["generate", ".", "--prompt", "x", "--device", "gpu"], "Did you mean 'cuda'?"),
    ],
)
def test_a_name_that_is_nearly_right_is_named(cli: Cli, arguments: list[str], meant: str) -> None:
    ran = cli(*arguments)
    assert ran.code == 2 and meant in ran.err


@pytest.mark.parametrize(
    "arguments",
    [["onnx"], ["onnx", "x", "-o", "y", "--nonsense"], ["onnx", "x", "-o", "y", "--dtype", "bf16"], ["nothing"]],
)
def test_a_usage_error_is_one_json_object_too(cli: Cli, arguments: list[str]) -> None:
    ran = cli(*arguments, "--json")
    answer = json.loads(ran.out)
    assert ran.code == 2 and answer["ok"] is False and answer["error"]["message"] in ran.err


def test_options_that_do_not_go_together_are_told_before_any_work(cli: Cli, tmp_path: Path) -> None:
    ran = cli("onnx", tmp_path / "none.pt", "-o", tmp_path / "gpt", "--quantize", "int8", "--target", "cuda")
    assert ran.code == 2 and "Pass target cpu" in ran.err and "reading" not in ran.err


def test_help_and_version_are_commands_too(cli: Cli) -> None:
    assert cli("help").out == cli("--help").out and cli("help", "onnx").out == cli("onnx", "--help").out
    assert cli("version").out == cli("--version").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(cli: Cli, shell: str) -> None:
    ran = cli("completion", shell)
    assert ran.code == 0 and "_GPTEXPORT_COMPLETE" in ran.out


NEXT = [
    ("gpt", ["--gelu", "tanh"]),
    ("a folder/gpt.onnx", ["--gelu", "tanh", "--vocab-size", "90", "--block-size", "9"]),
]


@pytest.mark.parametrize(("name", "options"), NEXT)
def test_the_next_step_runs_as_it_is_told(cli: Cli, tmp_path: Path, name: str, options: list[str]) -> None:
    (tmp_path / "a folder").mkdir()
    ckpt = tiny_nanogpt(tmp_path / "my ckpt.pt")
    ran = cli("onnx", ckpt, "-o", tmp_path / name, "-q", *options)
    (told,) = (line.removeprefix("next: gptexport ") for line in ran.out.splitlines() if line.startswith("next: "))
    checked = cli(*shlex.split(told), "--quick")
    assert checked.code == 0, checked.out + checked.err


def test_the_next_step_of_what_a_cpu_does_not_run_says_where(cli: Cli, tmp_path: Path) -> None:
    ran = cli("onnx", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "gpt", "-q", "--dtype", "bfloat16")
    assert ran.code == 0 and ran.out.rstrip().endswith("--device=cuda")
