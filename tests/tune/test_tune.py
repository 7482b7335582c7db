"""`gptexport tune`: what is kept, what a stopped run leaves for the next, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

import gptexport_runtime
from gptexport.bench import worker
from gptexport.bench.measure import Timing, ratio_of
from gptexport.bench.worker import Burst
from gptexport.checkpoints import Checkpoint
from gptexport.export import export
from gptexport.export.pipeline import Exported
from gptexport.export.targets import CPU, PORTABLE
from gptexport.precision import FLOAT32, INT8
from gptexport.recipe import Recipe
from gptexport.tune import tune as tuning
from gptexport.tune.candidates import Candidate, candidates
from gptexport_runtime.backends.ort.providers import why_not
from gptexport_runtime.contract.heads import DECODE
from tests.docs.test_schemas import SCHEMAS, closed, problems
from tests.support.builders import nanogpt_meta, tiny_nanogpt
from tests.support.cli import Cli

SOME = [Candidate(PORTABLE, FLOAT32, "cpu"), Candidate(CPU, FLOAT32, "cpu"), Candidate(CPU, INT8, "cpu")]
SPEEDS = {"portable-float32": 0.8, "cpu-float32": 1.0, "cpu-int8": 2.0}


class Still:
    """A worker that is no process."""

    def ready(self) -> None:
        return None

    def end(self) -> None:
        return None

    def __call__(self, _shape: tuple[int, int], *, settle: float, spend: float) -> Burst:
        return Burst([1.0], 0.0, 10**8)


def timings(
    sides: Mapping[str, Still],
    shapes: Sequence[tuple[int, int]],
    *,
    baseline: str,
    rounds: int,
    progress: Callable[[str], None],
) -> list[Timing]:
    def timing(name: str) -> Timing:
        seconds = 1 / SPEEDS[name]
        ratio = ratio_of([1.0] * rounds, [seconds] * rounds)
        return Timing(
            name=name,
            shape=shapes[0],
            warm=seconds,
            fastest=seconds,
            cold=seconds,
            ratio=ratio,
            tokens_per_second=1.0,
            gemm_fraction=None,
        )

    assert baseline == "cpu-float32"
    return [timing(name) for name in sides]


@pytest.fixture
def injected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings that are given, of three candidates."""
    monkeypatch.setattr(tuning, "candidates", lambda _head: SOME)
    monkeypatch.setattr(worker, "Worker", lambda _specification: Still())
    monkeypatch.setattr(tuning, "measure", timings)


@pytest.mark.usefixtures("injected")
def test_the_fastest_within_the_bound_is_kept_and_certified(cli: Cli, tmp_path: Path) -> None:
    ckpt, chart = tiny_nanogpt(tmp_path / "ckpt.pt"), tmp_path / "tune.svg"
    options = (
        "--shape",
        "1x5",
        "--max-kl",
        1e-9,
        "--tokenizer",
        nanogpt_meta(tmp_path / "meta.pkl"),
        "--json",
        "-q",
        "--plot",
        chart,
    )
    ran = cli("tune", ckpt, "-o", tmp_path / "gpt", *options)
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert (
        answer["chosen"] == "cpu-float32"
        and answer["as_fast"] == []
        and Draft202012Validator(closed(SCHEMAS["tune"])).is_valid(answer)
    )
    assert [c["frontier"] for c in answer["candidates"] if c["name"] == "cpu-int8"] == [True]
    with gptexport_runtime.load(tmp_path / "gpt", "cpu", require_parity=True) as gpt:
        assert gpt.manifest is not None and gpt.manifest.tokenizer is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt", "gpt", "meta.pkl", "tune.svg"]
    assert len(list(ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}circle"))) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("injected")
def test_a_stopped_run_goes_on_and_an_impossible_bound_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    exported: list[str] = []

    def stops(checkpoint: Checkpoint, out: Path, recipe: Recipe, *, force: bool) -> Exported:
        if len(exported) == 2:
            exported.append("stopped")
            raise KeyboardInterrupt
        exported.append("export")
        return export(checkpoint, out, recipe, force=force)

    monkeypatch.setattr(tuning, "export", stops)
    asked = ("tune", ckpt, "-o", tmp_path / "gpt", "--shape", "1x5", "--max-kl", 0, "-q")
    ran = cli(*asked)
    assert ran.code == 130 and "what was made so far is kept: run the same command again" in ran.err
    ran = cli(*asked)
    assert ran.code == 1 and "none of 3 candidates is within the bounds" in ran.err
    assert exported == ["export", "export", "stopped", "export"], "two were measured before"
    assert not (tmp_path / "gpt").exists() and (tmp_path / ".gpt.tune").is_dir()


@pytest.mark.usefixtures("injected")
def test_each_reason_is_told_where_nothing_can_be_exported(cli: Cli, tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")  # of 97 ids, where bytes are 256
    ran = cli("tune", ckpt, "-o", tmp_path / "gpt", "--shape", "1x5", "--tokenizer", "bytes", "-q")
    assert ran.code == 1 and "none of 3 candidates could be exported" in ran.err and "256" in ran.err


def test_a_folder_of_the_works_name_is_not_taken(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / ".gpt.tune").mkdir()
    ran = cli("tune", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "gpt", "--shape", "1x5", "-q")
    assert ran.code == 1 and "is not a folder that tune made" in ran.err
    assert (tmp_path / ".gpt.tune").is_dir()


def test_candidates_are_asked_of_targets_precisions_and_providers() -> None:
    names = {candidate.name for candidate in candidates()}
    assert {"portable-float32", "cpu-float32", "cpu-int8", "cpu-int4"} <= names
    assert "portable-bfloat16" not in names, "no CPU has kernels for it"
    assert any(name.startswith("openvino") for name in names) == (why_not("openvino") is None)
    steps = {candidate.name for candidate in candidates(DECODE)}
    assert steps == {name for name in names if not name.startswith("openvino")}, "whose decode is the CPU's"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logits", "last", "score", "decode"])
def test_each_head_is_timed_in_processes(cli: Cli, tmp_path: Path, head: str) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    ran = cli("tune", ckpt, "-o", tmp_path / "gpt", "--shape", "2x5", "--head", head, "--rounds", 2, "--json", "-q")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert problems("tune", answer) == [] and all(c["memory_bytes"] > 1e7 for c in answer["candidates"])
