"""Workers of a benchmark: each a process of its own, and one that fails takes none with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.bench.workers import Workers, interleave, running

ROOT = Path(__file__).parents[2]
WORKER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts.bench.workers import serve

name, folder = sys.argv[2:]

def make():
    if name == "missing":
        raise ImportError("there is no such peer")
    def measure(B, T):
        print("what a library prints is no answer")
        if name == "bad" and T == 2:
            raise SystemExit(1)
        return 1.0
    return measure

serve(make)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script)]


def test_a_worker_that_fails_leaves_the_others(command: list[str], tmp_path: Path) -> None:
    with running(command, ["good", "bad"], tmp_path) as workers:
        failed: dict[str, str] = {}
        seconds, peaks = interleave(workers.started, [(1, 1), (1, 2)], 2, failed)
    assert failed == {"bad": "it failed at 1x2"}
    assert seconds == {(1, 1): {"good": [1.0, 1.0], "bad": [1.0, 1.0]}, (1, 2): {"good": [1.0, 1.0]}}
    assert peaks["good"] > 1


def test_workers_can_be_made_ready_one_after_the_other(tmp_path: Path) -> None:
    """Else they would warm up on one GPU, which disturbs those that time what they choose."""
    script = tmp_path / "worker.py"
    at_once = "if name == 'missing':"
    alone = """began = Path(folder) / "busy"
    assert not began.exists(), "another is warming up"
    began.touch(); time.sleep(0.5); began.unlink()
    if name == 'missing':"""
    script.write_text(
        WORKER.replace('if name == "missing":', at_once)
        .replace(at_once, alone)
        .replace("import sys\n", "import sys, time\nfrom pathlib import Path\n", 1)
    )
    with running([sys.executable, str(script)], ["good", "also good", "missing"], tmp_path, together=False) as workers:
        assert list(workers.started) == ["good", "also good"]
        assert workers.missing == {"missing": "ImportError: there is no such peer"}


def test_a_failure_that_nobody_expects_ends_the_run(command: list[str], tmp_path: Path) -> None:
    with running(command, ["bad"], tmp_path) as workers, pytest.raises(SystemExit, match="bad failed at 1x2"):
        interleave(workers.started, [(1, 2)], 1)


def test_a_worker_that_cannot_start_says_why_and_all_end_with_the_block(command: list[str], tmp_path: Path) -> None:
    kept: list[Workers] = []
    with running(command, ["good", "missing"], tmp_path) as workers:
        kept.append(workers)
        assert list(workers.started) == ["good"]
        assert workers.missing == {"missing": "ImportError: there is no such peer"}
        assert kept[0].started["good"].poll() is None
    assert kept[0].started["good"].poll() is not None
