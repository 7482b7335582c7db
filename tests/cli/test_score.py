"""`gptexport score`: what it prints, and what a killed run leaves for the next."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.score import job
from gptexport.tokenizers import tokenizer_to_bundle
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.files import files_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    checkpoint = load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt", vocab_size=256)))
    return export_onnx(checkpoint, folder / "gpt", tokenizer=tokenizer_to_bundle("bytes")).path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {n} of some text\n" for n in range(500)))
    return path


def test_it_says_what_it_found(cli: Cli, bundle: Path, lines: Path, tmp_path: Path) -> None:
    ran = cli("score", bundle, lines, "--lines", "-o", tmp_path / "out", "--batch-tokens", 512, "--compare", bundle)
    assert ran.code == 0 and "documents      500" in ran.out and "perplexity" in ran.out and "bits per byte" in ran.out
    assert "0 of 500 documents have perplexities more than 1.005 times apart" in ran.out


def test_usage(cli: Cli, bundle: Path, lines: Path, tmp_path: Path) -> None:
    assert cli("score", bundle, "-o", tmp_path / "out").code == 2
    assert cli("score", bundle, lines).code == 2
    ran = cli("score", bundle, lines, "-o", lines, "--lines")
    assert ran.code == 1 and "is not a folder" in ran.err
    ran = cli("score", bundle, lines, "-o", tmp_path / "out", "--stride", 4096)
    assert ran.code == 1 and "stride is 4096; expected less than the block_size" in ran.err


def test_an_interrupt_says_that_it_can_go_on(
    cli: Cli, bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "write_part", interrupted)
    ran = cli("score", bundle, lines, "--lines", "-o", tmp_path / "out", "--batch-tokens", 512)
    assert ran.code == 130 and "what was scored stays: run the same command again" in ran.err


def test_a_killed_run_goes_on(bundle: Path, lines: Path, tmp_path: Path) -> None:
    """By SIGKILL, once some parts are there; the next run ends with the files of one that nobody stopped."""
    options = ["--lines", "--batch-tokens", "256", "--shard-tokens", "500", "--threads", "1", "--logprobs", "-q"]

    def command(out: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "gptexport",
            "score",
            str(bundle),
            str(lines),
            "-o",
            str(tmp_path / out),
            *options,
        ]

    subprocess.run(command("whole"), check=True, capture_output=True)
    parts = tmp_path / "killed" / "parts"
    with subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL) as running:
        while running.poll() is None and len(list(parts.glob("part-*"))) < 3:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    found = json.loads(subprocess.run([*command("killed"), "--json"], check=True, capture_output=True).stdout)
    assert 3 <= found["found"] < found["shards"]
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
