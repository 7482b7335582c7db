"""`gptexport trt` and `gptexport inspect` of an engine: what they print, and what every refusal is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptexport.engine import record_parity
from gptexport_runtime.backends.gpu.device import why_no_gpu
from tests.support.cli import Cli

Export = Callable[..., Path]
no_gpu = pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU here")
RTX = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")


def test_builds_and_says_what_was_not_run(cli: Cli, export: Export, tmp_path: Path) -> None:
    out = tmp_path / "gpt.engine"
    ran = cli("trt", export("bfloat16"), "-o", out, *RTX, "--compute-capability", "12.0")
    assert ran.code == 0
    assert "compiled for SM89 and SM120; not run" in ran.out
    assert "profile    B 1 to 8 and T 1 to 17, fastest at 8x17" in ran.out  # the defaults, cut to the block_size
    assert "3 layers of one kernel each" in ran.out
    assert out.is_file()
    assert "building: " not in ran.err  # no bar where there is no terminal


def test_json_is_one_object(cli: Cli, export: Export, tmp_path: Path) -> None:
    ran = cli("trt", export("bfloat16"), "-o", tmp_path / "gpt.engine", *RTX, "--json", "-q")
    data = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert (data["ok"], data["ran"]) == (True, False)
    assert data["status"].startswith("compiled for SM89; not run")
    assert data["sidecar"]["profiles"] == [{"min": [1, 1], "opt": [8, 17], "max": [8, 17]}]


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "T beyond block_size": (["--max", "8x18"], 2, "--max 8x18: T is beyond the model's block_size, 17"),
    "min over max": (["--min", "4x1", "--max", "2x17"], 2, "expected min ≤ opt ≤ max"),
    "no shape": (["--opt", "8,256"], 2, "'8,256' is not a shape; expected BxT"),
    "Hopper": (["--compute-capability", "9.0"], 2, "has no target 9.0 (Hopper: H100, H200); it has 7.5, 8.0, 8.6, 8.9"),
    "no such GPU": (["--compute-capability", "4.2"], 2, "has no target 4.2; it has 7.5"),
    "timing cache": (["--timing-cache", "cache"], 2, "TensorRT for RTX has no --timing-cache: it times nothing"),
    "level": (["--optimization-level", "5"], 2, "has no --optimization-level: it builds the same engine at every"),
    "versions": (["--version-compatible"], 2, "has no --version-compatible: its engines run with the version"),
    "hardware": (["--hardware-compatible"], 2, "has no --hardware-compatible: name each GPU"),
}


@pytest.mark.parametrize(("options", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(options: list[str], code: int, message: str, cli: Cli, export: Export, tmp_path: Path) -> None:
    ran = cli("trt", export("bfloat16"), "-o", tmp_path / "gpt.engine", *RTX, *options)
    assert ran.code == code
    assert message in " ".join(ran.err.split())
    assert list(tmp_path.iterdir()) == []


@no_gpu
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--backend", "tensorrt"], 4, "TensorRT builds on the GPU that will run the engine, and there is no NVIDIA"),
        (
            ["--backend", "tensorrt-rtx"],
            2,
            "there is no GPU here to build for. Say for which with --compute-capability",
        ),
        ([*RTX, "--refit"], 4, "compiles a refittable engine on a GPU only, and there is no NVIDIA driver"),
    ],
    ids=["tensorrt", "no target", "refit"],
)
def test_refusals_without_a_gpu(
    options: list[str], code: int, message: str, cli: Cli, export: Export, tmp_path: Path
) -> None:
    ran = cli("trt", export("bfloat16"), "-o", tmp_path / "gpt.engine", *options)
    assert ran.code == code
    assert message in " ".join(ran.err.split())
    assert list(tmp_path.iterdir()) == []


def test_name_must_end_in_engine(cli: Cli, export: Export, tmp_path: Path) -> None:
    ran = cli("trt", export("bfloat16"), "-o", tmp_path / "gpt.plan", *RTX)
    assert ran.code == 2
    assert "does not end in .engine" in ran.err


def test_library_that_is_not_installed(
    cli: Cli, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    ran = cli("trt", export("bfloat16"), "-o", tmp_path / "gpt.engine", *RTX)
    assert ran.code == 4
    assert "pip install gptexport[rtx]" in ran.err


def test_profiles_from_lengths(cli: Cli, export: Export, tmp_path: Path) -> None:
    (tmp_path / "lengths.txt").write_text("40\n60, 64 200\n")
    out = tmp_path / "gpt.engine"
    bundle = export("bfloat16", block_size=256, n_layer=1)
    ran = cli("trt", bundle, "-o", out, *RTX, "--lengths", tmp_path / "lengths.txt", "--buckets", 2, "--json")
    assert json.loads(ran.out)["sidecar"]["profiles"] == [
        {"min": [1, 1], "opt": [8, 60], "max": [8, 64]},
        {"min": [1, 65], "opt": [8, 200], "max": [8, 256]},
    ]
    refused = cli("trt", bundle, "-o", out, *RTX, "--lengths", tmp_path / "lengths.txt", "--min", "1x1", "--force")
    assert (refused.code, "--lengths sets the profiles" in refused.err) == (2, True)


def test_interrupted_command_leaves_nothing(export: Export, tmp_path: Path) -> None:
    """SIGINT to the process, as a terminal sends it. Whenever it comes, nothing may be left."""
    bundle = export("float32", block_size=256, n_layer=12, n_embd=96)
    command = [sys.executable, "-m", "gptexport", "trt", str(bundle), "-o", str(tmp_path / "gpt.engine"), *RTX]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "profile" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_inspect_reads_both_files_without_tensorrt(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    ran = cli("inspect", engine)
    assert ran.code == 0
    assert "runs on    SM89, with tensorrt-rtx 1." in ran.out
    assert "input_ids int64 (B,T) -> logits float32 (B,T,97)" in ran.out
    assert "--min 1x1 --opt 8x17 --max 8x17 --compute-capability 8.9" in ran.out
    data = json.loads(cli("inspect", engine, "--json").out)
    assert (data["kind"], data["flavour"], data["compute_capabilities"]) == ("engine", "tensorrt-rtx", ["8.9"])


def test_verdict_of_parity_goes_into_the_sidecar(cli: Cli, engine: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(engine, tmp_path))
    shutil.copy(f"{engine}.json", tmp_path)
    assert "parity      not checked: gptexport parity" in cli("inspect", copy).out
    sha256 = hashlib.sha256(copy.read_bytes()).hexdigest()
    record_parity(copy, {"passed": True, "noise_ratio": 1.1, "engine_sha256": sha256})
    assert "parity      passed, noise ratio 1.10" in cli("inspect", copy).out
    record_parity(copy, {"passed": False, "engine_sha256": sha256})
    assert "parity      FAILED" in cli("inspect", copy).out
    record_parity(copy, {"passed": True, "engine_sha256": "0" * 64})
    ran = cli("inspect", copy)
    assert ran.code == 1 and "parity      passed, but not of this engine" in ran.out
    assert "problem: its parity verdict does not belong to it" in ran.out
    assert json.loads(cli("inspect", copy, "--json").out)["problems"]
    assert copy.read_bytes() == engine.read_bytes()


def test_inspect_refuses_a_corrupt_engine(cli: Cli, engine: Path, tmp_path: Path) -> None:
    copy = shutil.copy(engine, tmp_path)
    shutil.copy(f"{engine}.json", tmp_path)
    with Path(copy).open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"!")
    ran = cli("inspect", copy)
    assert ran.code == 1
    assert "It is damaged, or this is another engine's sidecar" in ran.err
    assert "build it again: gptexport trt BUNDLE -o gpt.engine --backend tensorrt-rtx" in ran.err


def test_doctor_says_what_builds_here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def engines() -> dict[str, Any]:
        return {row["name"]: row for row in json.loads(cli("doctor", "--json").out)["engines"]}

    row = engines()["tensorrt-rtx"]
    assert "8.9, 12.0" in row["builds"]
    assert row["runs"] is (why_no_gpu() is None and row["reason"] is None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    row = engines()["tensorrt-rtx"]
    assert (row["version"], row["builds"], row["runs"]) == (None, "none", False)
    assert "pip install gptexport[rtx]" in row["reason"]
