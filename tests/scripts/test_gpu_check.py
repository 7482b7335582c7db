"""The GPU check where there is no GPU: what it would do, what it says is missing, how it judges and reports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu import check
from scripts.gpu.check import PLANS, choose
from scripts.gpu.parts import PARTS, ROOT
from scripts.gpu.report import MET, MISSED, UNKNOWN, judge, write_report


def results(**speeds: list[float]) -> dict[str, Any]:
    """Of a GPU where eager takes 2 ms, torch.compile 1 and gptexport what is given."""
    rows = {
        shape.replace("_", "x"): {"gptexport": own, "eager": [2.0] * 3, "torch.compile": [1.0] * 3}
        for shape, own in speeds.items()
    }
    ratio = {"noise_ratio": 1.5, "max_ratio": 2.0, "passed": True}
    return {
        "bench": {
            "status": "ok",
            "seconds": 60.0,
            "data": {"seconds": rows, "flops": {"8x1024": 2e12}, "matmul_flop_per_s": 5e12},
        },
        "score": {
            "status": "ok",
            "seconds": 9.0,
            "data": {
                "speed_ratio": 6.0,
                "tokens_per_s": 6e5,
                "host_tokens_per_s": 1e5,
                "bytes_per_token": 4.0,
                "host_bytes_per_token": 201028.0,
            },
        },
        "parity": {
            "status": "stopped",
            "seconds": 60.0,
            "data": {"float32": ratio, "float16": {**ratio, "noise_ratio": 2.1}},
            "reason": "it took more than 60 s",
        },
        "tests": {"status": "ok", "seconds": 5.0, "data": {"passed": 20, "failed": 1, "skipped": 2}},
    }


def test_targets_are_judged_by_medians_of_paired_ratios() -> None:
    found = results(**{"8x1024": [0.9, 0.95, 1.2], "1x128": [1.0, 1.0, 1.0], "1x1": [1.5, 1.5, 1.5]})
    judged = {target.name: (target.found, target.verdict) for target in judge(found)}
    assert judged == {
        "GPT-2 124M bf16, 8×1024, beside torch.compile": ("1.05 ×", MET),
        "GPT-2 124M bf16, CUDA graphs, 1×128, beside eager": ("2.00 ×", MET),
        "GPT-2 124M bf16, CUDA graphs, 1×1, beside eager": ("1.33 ×", MISSED),
        "GPT-2 XL's shape bf16, 4×1024, beside torch.compile": ("–", UNKNOWN),
        "score 64×1024 beside logits that come to the host": ("6.00 ×", MET),
        "noise ratio, float32": ("1.50", MET),
        "noise ratio, float16": ("2.10", MISSED),
        "noise ratio, bfloat16": ("–", UNKNOWN),
        "pytest -m gpu": ("20 passed, 1 failed, 2 skipped", MISSED),
    }


def test_the_fastest_way_to_compile_is_the_one_to_beat() -> None:
    found = results(**{"8x1024": [0.9] * 3})
    found["bench"]["data"]["seconds"]["8x1024"]["torch.compile max-autotune"] = [0.6] * 3
    assert judge(found)[0].found == "0.67 ×"


def test_report_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    found = results(**{"8x1024": [1.0] * 3, "1x1": [0.5] * 3})
    path, _ = write_report(tmp_path, found, {"GPU": "a GPU"}, "python -m scripts.gpu.check", "2026-01-02")
    text = path.read_text()
    assert path.name == "gpu-2026-01-02.md"
    for line in (
        "- GPU: a GPU",
        "`python -m scripts.gpu.check`",
        "| score 64×1024 beside logits that come to the host | ≥ 5.0 × | 6.00 × | met |",
        "| 8×1024 | 1000.000 (2.00×) | 2000.000 (1.00×) | 1000.000 (2.00×) | 40 % |",
        "600,000 tokens/s, 4.0 bytes to the host for each",
        "- parity: stopped, 60 s: it took more than 60 s",
    ):
        assert line in text
    saved = json.loads((tmp_path / "gpu-2026-01-02.json").read_text())
    assert saved["results"] == found and saved["targets"][0]["verdict"] == "met"


def test_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    _, targets = write_report(tmp_path, {}, {}, "a command", "2026-01-02")
    assert {target.verdict for target in targets} == {UNKNOWN}


def test_plan_is_what_was_asked_for_and_what_that_needs() -> None:
    assert [plan.name for plan in PLANS] != [] and {plan.name for plan in PLANS} == set(PARTS)
    assert [plan.name for plan in choose("parity,score", quick=False)] == ["prepare", "score", "parity"]
    assert [plan.name for plan in choose("tests", quick=True)] == ["tests"]
    assert "xl" not in [plan.name for plan in choose(None, quick=True)]
    with pytest.raises(SystemExit, match="speed is no part"):
        choose("speed", quick=False)


def test_everything_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECKS", {"a": lambda: None, "b": lambda: "b is gone", "c": lambda: "c too"})
    assert check.what_is_missing({"a", "b", "c"}) == {"b": "b is gone", "c": "c too"}
    assert "not installed: pip install nosuchmodule" in str(check._why_no_module("nosuchmodule"))


def test_without_a_gpu_it_ends_with_4_and_the_reasons() -> None:
    from gptexport_runtime.backends.ort.providers import why_not

    reason = why_not("cuda")
    if reason is None:
        pytest.skip("CUDA runs here")
    command = [sys.executable, "-m", "scripts.gpu.check", "--only", "decode"]
    done = subprocess.run(command, text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 4
    assert done.stdout.startswith("The GPU check cannot start here:") and f"onnxruntime: {reason}" in done.stdout


PART = """
import json, subprocess, sys, time
name, folder, result = sys.argv[1:4]
open(result, "w").write(json.dumps({"half": 1}))
if name == "slow":
    child = subprocess.Popen(["sleep", "60"])
    open(folder + "/child", "w").write(str(child.pid))
    time.sleep(60)
if name == "wrong":
    raise ValueError("no such kernel")
"""


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("right", "ok", None),
        ("wrong", "failed", "ValueError: no such kernel"),
        ("slow", "stopped", "it took more than 5 s"),
    ],
)
def test_part_that_fails_or_takes_too_long_is_told_with_what_it_found(
    name: str, status: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SHORTEST", 0)
    script = tmp_path / "part.py"
    script.write_text(PART)
    found = check.run_part(
        name, tmp_path, 5 if name == "slow" else 30, quick=False, command=(sys.executable, str(script))
    )
    assert (found["status"], found["reason"], found["data"]) == (status, reason, {"half": 1})
    if name == "slow":  # and what it had started is gone too
        pid = int((tmp_path / "child").read_text())
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline


def test_part_for_which_no_time_is_left_does_not_begin(tmp_path: Path) -> None:
    found = check.run_part("xl", tmp_path, 3.0, quick=False)
    assert (found["status"], found["data"]) == ("not begun", {})
