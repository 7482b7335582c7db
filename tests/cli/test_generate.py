"""`gptexport generate`: what it prints, when, and what it refuses."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport_runtime import Session, load
from tests.support.builders import ALPHABET, nanogpt_meta, tiny_nanogpt
from tests.support.cli import Cli, Ran

OPTIONS = ("--max-new-tokens", 9, "--top-k", 5, "-q")


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one character an id."""
    folder = tmp_path_factory.mktemp("talking")
    words = tokenizer_to_bundle(str(nanogpt_meta(folder / "meta.pkl")))
    export_onnx(load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt"))), folder / "gpt", tokenizer=words)
    return folder / "gpt"


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a tokenizer, of as many ids as there are bytes."""
    folder = tmp_path_factory.mktemp("mute")
    export_onnx(load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt", vocab_size=256))), folder / "gpt")
    return folder / "gpt"


def expected(bundle: Path, seed: int = 4) -> list[int]:
    with load(bundle) as session:
        return session.generate([[33, 34, 35]], max_new_tokens=9, top_k=5, seed=seed)[0].tolist()


def text_of(ids: list[int]) -> str:
    return "".join(ALPHABET[i] for i in ids)


def test_it_prints_what_the_session_generates(cli: Cli, talking: Path) -> None:
    ids = expected(talking)
    ran = cli("generate", talking, "--prompt", "ABC", "--seed", 4, *OPTIONS)
    assert (ran.code, ran.out) == (0, text_of(ids) + "\n")
    data = json.loads(cli("generate", talking, "--prompt-ids", "33,34,35", "--seed", 4, *OPTIONS, "--json").out)
    assert data["samples"] == [{"seed": 4, "ids": ids, "text": text_of(ids)}]
    assert data["prompt_ids"] == [33, 34, 35]


def test_sample_n_has_seed_plus_n(cli: Cli, talking: Path) -> None:
    arguments = ("generate", talking, "--prompt", "ABC", "--seed", 3, "--samples", 3, *OPTIONS)
    texts = {seed: text_of(expected(talking, seed)) for seed in (3, 4, 5)}
    assert len(set(texts.values())) > 1
    assert cli(*arguments).out == "".join(f"--- seed {seed} ---\n{text}\n" for seed, text in texts.items())
    data = json.loads(cli(*arguments, "--json").out)
    assert {row["seed"]: row["text"] for row in data["samples"]} == texts


def test_every_token_is_printed_before_the_next_is_computed(
    cli: Cli, talking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", newline="\n"))
    flushed = watch_steps(monkeypatch, lambda: printed.getvalue().decode())
    cli("generate", talking, "--prompt", "ABC", "--seed", 4, *OPTIONS)
    text = text_of(expected(talking))
    assert flushed[:9] == [text[:n] for n in range(9)]


def watch_steps(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> list[object]:
    """What was there to be seen as each step of a session's streams was handed out, from now on."""
    seen: list[object] = []
    stream = Session.stream

    def watched(self: Session, *arguments: Any, **options: Any) -> Iterator[object]:
        for step in stream(self, *arguments, **options):
            seen.append(look())
            yield step

    monkeypatch.setattr(Session, "stream", watched)
    return seen


def test_it_stops_at_an_id_and_at_a_text(cli: Cli, talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = expected(talking)
    text = text_of(ids)
    arguments = ("generate", talking, "--prompt", "ABC", "--seed", 4, *OPTIONS)
    new = next(n for n in range(2, 6) if ids[n] not in ids[:n])
    assert cli(*arguments, "--stop", ids[new]).out == text[:new] + "\n"
    stop = text[new : new + 2]
    assert cli(*arguments, "--stop", stop, "--stop", "never").out == text[:new] + "\n"
    other = text_of(expected(talking, 5))
    steps = watch_steps(monkeypatch, lambda: None)
    (row,) = json.loads(cli(*arguments, "--stop", stop, "--json").out)["samples"]
    assert row["text"] == text[:new] and row["ids"] == ids[: new + 2]
    assert len(steps) == new + 2 < 9, "no more is computed than the stop needs"
    rows = json.loads(cli(*arguments, "--stop", stop, "--samples", 2, "--json").out)["samples"]
    assert rows[0]["ids"] == ids[: new + 2] and len(rows[1]["ids"]) == 9, "one ends, the other goes on"
    assert [row["text"] for row in rows] == [text[:new], other.partition(stop)[0]]


def test_the_prompt_comes_from_stdin(cli: Cli, talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(data: bytes) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        return cli("generate", talking, "--prompt", "-", *OPTIONS, "--json")

    assert json.loads(typed("é 語".encode()).out)["prompt_ids"] == [95, 0, 96], "UTF-8, whatever the locale"
    ran = typed(b"\xe9")
    assert ran.code == 2 and "the prompt is not UTF-8" in ran.err
    assert typed(b"").code == 2


def test_a_terminal_may_not_have_every_character(cli: Cli, mute: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(seed for seed in range(99) if max(expected(mute, seed)) > 127)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", newline="\n"))
    arguments = ("generate", mute, "--prompt-ids", "33,34,35", "--tokenizer", "bytes", "--seed", seed, *OPTIONS)
    assert cli(*arguments).code == 0
    text = bytes(expected(mute, seed)).decode("utf-8", "replace") + "\n"
    assert printed.getvalue() == text.encode("ascii", "replace") and b"?" in printed.getvalue()


def test_without_a_tokenizer(cli: Cli, mute: Path) -> None:
    ran = cli("generate", mute, "--prompt", "ABC")
    assert ran.code == 1 and "carries no tokenizer" in ran.err
    assert "--prompt-ids" in ran.err and "--tokenizer" in ran.err
    ran = cli("generate", mute, "--prompt-ids", "33,34,35", "--stop", "x")
    assert ran.code == 1 and "the text of --stop cannot be read" in ran.err
    ran = cli("generate", mute, "--prompt-ids", "33", "--max-new-tokens", 1)
    assert "ids are shown" in ran.err
    ids = expected(mute)
    ran = cli("generate", mute, "--prompt-ids", "33,34,35", "--seed", 4, *OPTIONS)
    assert (ran.code, ran.out) == (0, " ".join(map(str, ids)) + "\n")
    ran = cli("generate", mute, "--prompt-ids", "33,34,35", "--seed", 4, *OPTIONS, "--tokenizer", "bytes")
    assert (ran.code, ran.out) == (0, bytes(ids).decode("utf-8", "replace") + "\n")


def test_without_a_decode_graph(cli: Cli, tmp_path: Path) -> None:
    """The text is the same, and it is said why it takes longer."""
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    assert cli("onnx", ckpt, "-o", tmp_path / "fast").code == 0
    assert cli("onnx", ckpt, "-o", tmp_path / "slow", "--graphs", "logits").code == 0
    options = ["--prompt-ids", "1,2", "--temperature", 0, "--max-new-tokens", 9]
    fast, slow = (cli("generate", tmp_path / name, *options) for name in ("fast", "slow"))
    assert (fast.code, slow.code) == (0, 0) and fast.out == slow.out
    assert "slow: the whole text is computed again for every token" in slow.err and "slow" not in fast.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Pass either --prompt or --prompt-ids"),
        (("--prompt", "a", "--prompt-ids", "1"), 2, "Pass either"),
        (("--prompt-ids", "1,x"), 2, "'x' is not a token id"),
        (("--prompt", ""), 2, "the prompt is empty"),
        (("--prompt", "\udcff"), 2, "the prompt is not UTF-8"),  # what Python makes of the byte FF
        (("--prompt", "a", "--slide"), 2, "pass --max-new-tokens"),
        (("--prompt", "a", "--stop", ""), 2, "to stop at is empty"),
        (("--prompt", "a", "--stop", "97"), 1, "0 to 96"),
        (("--prompt", "\x00"), 1, "characters that"),
        (("--prompt", "a", "--top-p", "2"), 1, "top_p is 2.0"),
        (("--prompt", "a", "--top-p", "2", "--samples", "2"), 1, "top_p is 2.0"),
        (("--prompt", "a", "--max-new-tokens", "99"), 1, "block_size is 17"),
        (("--prompt", "a", "--tokenizer", "bytes"), 1, "256 ids, the model's vocabulary 97"),
        (("--prompt-ids", "1000"), 1, "1000"),
        (("--prompt", "a", "--samples", "1000000000"), 2, "1<=x<=4096"),
    ],
)
def test_what_it_refuses(cli: Cli, talking: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    ran = cli("generate", talking, *arguments)
    assert ran.code == code and message in ran.err, ran.err
    assert ran.out == "", "nothing is printed before an error"


def endless(bundle: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gptexport", "generate", str(bundle), "--prompt-ids", "33", "-q", "--slide"]
    command += ["--max-new-tokens", "10000000", "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_keeps_what_was_printed(talking: Path) -> None:
    """It comes while it is generated, through a pipe too."""
    process = endless(talking)
    assert process.stdout is not None
    first = process.stdout.read(50)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip() == b"error: interrupted; what had come was printed."
    assert len(first) == 50 and (first + rest).endswith(b"\n")
    assert b"\n" not in (first + rest)[:-1]


def test_a_reader_that_leaves_ends_it(talking: Path) -> None:
    process = endless(talking)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
