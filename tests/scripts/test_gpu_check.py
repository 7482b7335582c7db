"""The GPU check where there is no GPU: what it would do, what it says is missing, how it judges and reports."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu import check
from scripts.gpu.check import PLANS, choose
from scripts.gpu.parts import GPU_TESTS, PARTS, ROOT
from scripts.gpu.peers import COMPILED_WIDE, EAGER, GRAPHED, OWN, TUNED_WIDE
from scripts.gpu.report import MET, MISSED, UNKNOWN, judge, read_results, report_of, write_report


def results(**speeds: list[float]) -> dict[str, Any]:
    """Of a GPU where eager takes 2 ms, torch.compile with float32 logits 1 and gptexport what is given."""
    rows = {
        shape.replace("_", "x"): {OWN: own, EAGER: [2.0] * 3, COMPILED_WIDE: [1.0] * 3} for shape, own in speeds.items()
    }
    ratio = {"noise_ratio": 1.5, "max_ratio": 2.0, "passed": True, "heads": {"last": [1e-3, 2e-3, True]}}
    passes = {
        "same logits": {"dtype": "bfloat16", "seconds": rows, "missing": {GRAPHED: "it failed at 1x1"}},
        "float16": {"dtype": "float16", "seconds": {"8x1024": {OWN: [1.0], COMPILED_WIDE: [0.1]}}, "missing": {}},
    }
    return {
        "bench": {
            "status": "stopped",
            "seconds": 60.0,
            "data": {"passes": passes, "flops": {"8x1024": 2e12}, "matmul_flop_per_s": 5e12},
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
        "decode": {
            "status": "ok",
            "seconds": 30.0,
            "data": {
                "seconds_per_token": {
                    "gptexport, 1 rows": 4e-4,
                    "transformers, 1 rows": 2e-3,
                    "transformers, static cache and compile, 1 rows": 5e-4,
                }
            },
        },
        "memory": {"status": "ok", "seconds": 30.0, "data": {"calls": 10000, "taken": [3e8, 4e8, 4e8]}},
        "kernels": {
            "status": "ok",
            "seconds": 9.0,
            "data": {"said": {"bfloat16": {"ran": {}, "unexpected": ["MATH"]}}},
        },
        "micro": {"status": "ok", "seconds": 9.0, "data": {"rows": [{"label": "GQA", "failed": "no\nkernel | none"}]}},
        "tests": {"status": "ok", "seconds": 5.0, "data": {"passed": 20, "failed": 1, "skipped": 2}},
    }


def test_targets_are_judged_by_medians_of_paired_ratios() -> None:
    found = results(**{"8x1024": [0.9, 0.95, 1.2], "1x128": [1.0, 1.0, 1.0], "1x1": [1.5, 1.5, 1.5]})
    judged = {target.name: (target.found, target.verdict) for target in judge(found)}
    beside_graphs = f"beside {GRAPHED}"
    assert judged == {
        f"GPT-2 124M bf16, 8×1024, beside {COMPILED_WIDE}": ("1.05 ×", MET),
        "GPT-2 124M bf16, CUDA graphs, 1×128, beside eager": ("2.00 ×", MET),
        f"GPT-2 124M bf16, CUDA graphs, 1×128, {beside_graphs}": ("–", UNKNOWN),
        "GPT-2 124M bf16, CUDA graphs, 1×1, beside eager": ("1.33 ×", MISSED),
        f"GPT-2 124M bf16, CUDA graphs, 1×1, {beside_graphs}": ("–", UNKNOWN),
        f"GPT-2 XL's shape bf16, 4×1024, beside {COMPILED_WIDE}": ("–", UNKNOWN),
        "decode, one row, beside transformers": ("1.25 ×", MET),
        "score 64×1024 beside logits that come to the host": ("6.00 ×", MET),
        "noise ratio and every head, float32": ("1.50", MET),
        "noise ratio and every head, float16": ("2.10", MISSED),
        "noise ratio and every head, bfloat16": ("–", UNKNOWN),
        "attention kernels": ("bfloat16: MATH", MISSED),
        "memory over calls of growing shapes": ("+ 100 MB in 10,000 calls, 400 MB in all", MISSED),
        "pytest -m gpu": ("20 passed, 1 failed, 2 skipped", MISSED),
    }


def test_the_fastest_way_to_compile_is_the_one_to_beat() -> None:
    """Also where it was measured in another part, in whose rounds gptexport was measured again."""
    found = results(**{"8x1024": [0.9] * 3})
    rounds = {"8x1024": {OWN: [1.0] * 3, TUNED_WIDE: [0.6] * 3}}
    found["tuned"] = {"data": {"passes": {"max-autotune": {"dtype": "bfloat16", "seconds": rounds, "missing": {}}}}}
    assert judge(found)[0].found == "0.60 ×"


def test_report_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    found = results(**{"8x1024": [1.0] * 3, "1x1": [0.5] * 3})
    path = tmp_path / "gpu-2026-01-02.md"
    write_report(path, found, {"GPU": "a GPU"}, "python -m scripts.gpu.check", "2026-01-02")
    text = path.read_text()
    for line in (
        "- GPU: a GPU",
        "`python -m scripts.gpu.check`",
        "| score 64×1024 beside logits that come to the host | ≥ 5.0 × | 6.00 × | met |",
        "| 8×1024 | 1000.000 | 2000.000 (2.00×) | 1000.000 (1.00×) | 40 % |",
        f"Not measured: {GRAPHED}: it failed at 1x1",
        "600,000 tokens/s, 4.0 bytes to the host for each",
        "| float32 | 1.50 | 2.00 | True | last 1.0e-03 of 2.0e-03 |",
        "| GQA | – |  |  | no kernel / none |",
        "- parity: stopped, 60 s: it took more than 60 s",
    ):
        assert line in text
    saved = json.loads((tmp_path / "gpu-2026-01-02.json").read_text())
    assert saved["results"] == found and saved["targets"][0]["verdict"] == "met"


def test_report_of_nothing_is_a_report(tmp_path: Path) -> None:
    targets = write_report(tmp_path / "gpu.md", {}, {}, "a command", "2026-01-02")
    assert {target.verdict for target in targets} == {UNKNOWN}


def test_commands_of_a_day_make_one_report_and_machines_one_each(tmp_path: Path) -> None:
    here, there = {"GPU": "a GPU"}, {"GPU": "another"}
    path = report_of(tmp_path, here, "2026-01-02")
    assert (path.name, read_results(path)) == ("gpu-2026-01-02.md", {})
    write_report(path, {"score": {"status": "ok"}}, here, "a command", "2026-01-02")
    assert report_of(tmp_path, here, "2026-01-02") == path and read_results(path) == {"score": {"status": "ok"}}
    assert report_of(tmp_path, there, "2026-01-02").name == "gpu-2026-01-02-2.md"


def test_what_is_done_is_not_done_again_and_nothing_that_was_found_is_lost() -> None:
    done = {"score": {"status": "ok"}, "bench": {"status": "stopped"}, "probe": {"status": "ok"}}
    assert [check.is_done(name, done) for name in ("score", "bench", "xl", "probe")] == [True, False, False, False]
    half, nothing = {"status": "stopped", "data": {"a": 1}}, {"status": "not begun", "data": {}}
    assert check.better(nothing, half) is half and check.better(nothing, None) is nothing
    before = {"code": "1", "data": {"passes": {"first": 1, "second": 2}, "flops": 3}}
    now = {"code": "1", "data": {"passes": {"first": 4}}}
    assert check.better(now, before)["data"] == {"passes": {"first": 4, "second": 2}, "flops": 3}
    changed = {**now, "code": "2"}
    assert check.better(changed, before) is changed


def test_an_export_that_could_not_say_its_version_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare checkout imports, and has no metadata: every export would end in an error after all its work."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert check.CHECKS["gptexport"]() is None
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "is not installed, only imported" in str(check.CHECKS["gptexport"]())


def test_plan_is_what_was_asked_for_and_what_that_needs() -> None:
    assert [plan.name for plan in PLANS] != [] and {plan.name for plan in PLANS} == set(PARTS)
    assert [plan.name for plan in choose("parity,score", quick=False)] == ["prepare", "parity", "score"]
    assert [plan.name for plan in choose("tests", quick=True)] == ["tests"]
    assert [plan.name for plan in choose(None, quick=False)] == list(PARTS)  # in the order of the plan
    assert "xl" not in [plan.name for plan in choose(None, quick=True)]
    assert all(plan.seconds < check.DEADLINE for plan in PLANS)
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


def checked(python: str, module: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """What a whole run of the check leaves behind: the parts of its report, none of which failed."""
    where = ["--quick", "--folder", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    done = subprocess.run([python, "-m", module, *options, *where], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode in (0, check.EXIT_MISSED), done.stderr
    (report,) = (tmp_path / "out").glob("gpu-*.json")
    found: dict[str, Any] = json.loads(report.read_text())["results"]
    assert {name: part["status"] for name, part in found.items()} == dict.fromkeys(found, "ok"), done.stderr
    return found


def test_on_a_cpu_it_runs_to_its_end(tmp_path: Path) -> None:
    found = checked(sys.executable, "scripts.gpu.check", tmp_path, "--on", "cpu", "--only", "probe")
    assert found["probe"]["data"]["runs"]["cpu"] == "yes"


@pytest.mark.slow
def test_on_a_cpu_parts_share_what_was_prepared(tmp_path: Path) -> None:
    found = checked(sys.executable, "scripts.gpu.check", tmp_path, "--on", "cpu", "--only", "micro,parity,score,memory")
    assert list(found) == ["prepare", "micro", "parity", "score", "memory"]
    assert found["parity"]["data"]["float32"]["passed"] and found["memory"]["data"]["calls"] == 10


@pytest.mark.slow
def test_over_a_pretended_gpu_parts_run_to_their_end(tmp_path: Path) -> None:
    """With GPTEXPORT_PRETEND_PYTHON, an interpreter that has onnxruntime-gpu, CUDA's libraries and torch."""
    python = os.environ.get("GPTEXPORT_PRETEND_PYTHON")
    if python is None:
        pytest.skip("GPTEXPORT_PRETEND_PYTHON names no interpreter with onnxruntime-gpu")
    parts = "probe,kernels,micro,parity,score,decode,memory"
    found = checked(python, "scripts.gpu.pretend", tmp_path, "--check", "--deadline", "1200", "--only", parts)
    assert set(found) == {"prepare", *parts.split(",")} and found["probe"]["data"]["runs"]["cuda"] == "yes"


def test_every_file_with_tests_for_a_gpu_is_run() -> None:
    mark = "pytest.mark." + "gpu"
    files = [str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py") if mark in file.read_text()]
    assert sorted(files) == sorted(GPU_TESTS)
