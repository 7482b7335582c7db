"""Sums are the session's own, and the same to the last bit however often a run was stopped."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from gptexport.errors import OutputExistsError
from gptexport.score import Asked, Progress, job, score_corpus, scorer
from gptexport.score.scorer import Scorer, measure_batch
from gptexport.score.windows import Shard
from gptexport.staging import watched
from gptexport_runtime import Session
from gptexport_runtime.errors import ExecutionError, InputError
from gptexport_runtime.text import characters, load_tokenizer
from tests.support.faults import scale_weight, tampered
from tests.support.files import files_of

BLOCK = 16
WORDS = load_tokenizer("bytes")


class Stopped(BaseException):
    """As a kill would, but in this process."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def plain(session: Session, ids: list[int], stride: int) -> list[float]:
    """The log-probs as transformers' guide computes them, a window at a time."""
    found: list[float] = []
    before = 1
    for begin in range(0, len(ids), stride):
        end = min(begin + BLOCK, len(ids))
        logprobs = session.score([ids[begin:end]]).logprobs[0]
        found += logprobs[len(logprobs) - (end - before) :].tolist() if end > before else []
        before = max(end, 1)
        if end == len(ids):
            break
    return found


@pytest.mark.parametrize("stride", [None, 1, 15])
def test_documents_have_the_sums_of_the_guide(asked: Asked, session: Session, stride: int | None) -> None:
    asked = replace(asked, stride=stride, keep_logprobs=True)
    totals = score_corpus(asked, WORDS)
    corpus = [json.loads(line)["ids"] for line in asked.files[0].read_text().splitlines()]
    rows = rows_of(asked.out / "documents.parquet")
    parts = [row for path in sorted((asked.out / "parts").iterdir()) for row in rows_of(path)]
    assert [row["document"] for row in rows] == list(range(len(corpus)))
    for ids, row in zip(corpus, rows, strict=True):
        expected = plain(session, ids, stride or BLOCK // 2)
        mine = [part for part in parts if part["document"] == row["document"]]
        assert np.allclose([value for part in mine for value in part["logprobs"]], expected, atol=1e-5)
        assert (row["tokens"], row["bytes"]) == (max(len(ids) - 1, 0), len(ids))
        assert row["nll"] == pytest.approx(-math.fsum(expected), abs=1e-4)
        if expected:
            assert row["perplexity"] == pytest.approx(math.exp(-math.fsum(expected) / len(expected)), rel=1e-5)
            assert row["bits_per_byte"] == pytest.approx(row["nll"] / math.log(2) / len(ids))
        else:
            assert row["perplexity"] is None and row["bits_per_byte"] is None
    assert totals["tokens"] == sum(row["tokens"] for row in rows) and totals["documents"] == len(corpus)
    assert totals["nll"] == math.fsum(row["nll"] for row in rows)
    assert totals == {
        name: value
        for name, value in json.loads((asked.out / "summary.json").read_text()).items()
        if name not in ("format", "format_version")
    }


def test_a_run_stopped_at_any_step_goes_on_to_the_same_files(asked: Asked, tmp_path: Path) -> None:
    """Before a change of the disk, every eleventh of them; and once more where it goes on."""
    steps = list[str]()
    with watched(lambda step, _path: steps.append(step)):
        score_corpus(asked, WORDS)
    whole = files_of(asked.out)
    assert len(steps) > 100
    for at in range(0, len(steps), 11):
        stopped = replace(asked, out=tmp_path / f"stopped {at}")
        for after in (at, 20):
            with watched(partial(_stop, count(), after)), contextlib.suppress(Stopped):
                score_corpus(stopped, WORDS)
        score_corpus(stopped, WORDS)
        assert files_of(stopped.out) == whole


def _stop(steps: Iterator[int], at: int, _step: str, _path: Path) -> None:
    if next(steps) == at:
        raise Stopped


def test_what_is_there_is_not_scored_again(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    score_corpus(asked, WORDS)
    whole = files_of(asked.out)
    part = asked.out / "parts" / "part-000003.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    scored, seen, call = list[int](), list[Progress](), Scorer.__call__

    def watched_call(self: Scorer, shard: Shard) -> Any:
        scored.append(shard.number)
        return call(self, shard)

    monkeypatch.setattr(Scorer, "__call__", watched_call)
    score_corpus(asked, WORDS, progress=seen.append)
    assert scored == [3] and files_of(asked.out) == whole, "a damaged part is scored again"
    assert (seen[-1].shards, seen[-1].found) == (len(whole) - 3, len(whole) - 4)


def test_the_measured_batch_is_kept(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(asked, batch_tokens=None)
    monkeypatch.setattr(job, "measure_batch", lambda *_: 48)
    score_corpus(asked, WORDS)
    monkeypatch.setattr(job, "measure_batch", lambda *_: pytest.fail("measured again"))
    score_corpus(asked, WORDS)
    assert json.loads((asked.out / "score.json").read_text())["batch_tokens"] == 48


def test_the_fastest_batch_is_taken(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 1.0, 2: 1.0, 4: 1.99, 8: 3.0, 16: 7.0, 32: 14.0, 64: 28.0}

    def fastest(_session: Session, ids: np.ndarray[Any, Any]) -> float:
        if len(ids) not in seconds:
            raise ExecutionError("out of memory.")
        return seconds[len(ids)]

    monkeypatch.setattr(scorer, "_fastest", fastest)
    assert measure_batch(session, BLOCK, lambda _: None) == 8 * BLOCK
    seconds.clear()
    with pytest.raises(ExecutionError):
        measure_batch(session, BLOCK, lambda _: None)


def test_other_settings_are_refused_and_replaced_by_force(asked: Asked) -> None:
    score_corpus(asked, WORDS)
    for other in (replace(asked, stride=3), replace(asked, batch_tokens=32), replace(asked, threads=2)):
        with pytest.raises(OutputExistsError, match="was begun with another"):
            score_corpus(other, WORDS)
    other = replace(asked, stride=3, shard_tokens=1000)
    score_corpus(other, WORDS, force=True)
    fresh = replace(other, out=asked.out.with_name("fresh"))
    score_corpus(fresh, WORDS)
    assert files_of(asked.out) == files_of(fresh.out)


def test_another_tokenizer_is_refused(asked: Asked) -> None:
    """Also one of as many ids, which makes as many tokens of every text."""
    score_corpus(asked, WORDS)
    table = [chr(255 - i) for i in range(WORDS.size)]
    with pytest.raises(OutputExistsError, match="was begun with another tokenizer"):
        score_corpus(asked, characters(table, "reversed"))


def test_files_that_changed_are_noticed(asked: Asked) -> None:
    score_corpus(asked, WORDS)
    (asked.out / "parts" / "part-000004.parquet").unlink()
    lines = asked.files[0].read_text().splitlines(keepends=True)
    asked.files[0].write_text("".join([lines[-2], *lines[:-2], lines[-1]]))
    with pytest.raises(OutputExistsError, match="other documents than the files have now"):
        score_corpus(asked, WORDS)


def test_what_is_somebody_elses_stays(asked: Asked) -> None:
    asked.out.mkdir()
    (asked.out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="something other than scores"):
            score_corpus(asked, WORDS, force=force)
    assert files_of(asked.out) == {"thesis.txt": b"mine"}


def test_nothing_to_score(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no document"):
        score_corpus(replace(asked, files=[tmp_path / "empty.jsonl"]), WORDS)
    with pytest.raises(InputError, match="stride is 16; expected less than"):
        score_corpus(replace(asked, stride=16), WORDS)


def test_two_bundles_and_the_documents_that_part(asked: Asked, bundle: Path, tmp_path: Path) -> None:
    other = tampered(bundle, tmp_path / "wrong", scale_weight("ln_f.weight", 1.2))
    one = score_corpus(replace(asked, artifact=other, out=tmp_path / "other"), WORDS)
    both = score_corpus(replace(asked, compare=other, keep_logprobs=True), WORDS)
    assert both["other"]["nll"] == one["nll"] and both["nll"] != one["nll"]
    rows = rows_of(asked.out / "documents.parquet")
    far = {r["document"]: r["ratio"] for r in rows if r["ratio"] and not 1 / 1.005 <= r["ratio"] <= 1.005}
    compared = both["compared"]
    assert compared["parted"] == len(far) > 0
    assert {row["document"]: row["ratio"] for row in compared["farthest"]} == far
    assert sum(compared["perplexity_ratios"].values()) == sum(1 for row in rows if row["tokens"])
    same = score_corpus(replace(asked, compare=bundle, out=tmp_path / "same"), WORDS)
    assert same["compared"]["parted"] == 0 and same["other"]["nll"] == same["nll"]


def test_a_model_that_gives_no_numbers(asked: Asked, bundle: Path, tmp_path: Path) -> None:
    broken = tampered(bundle, tmp_path / "broken", scale_weight("ln_f.weight", float("nan")))
    with pytest.raises(ExecutionError, match="a log-prob is nan"):
        score_corpus(replace(asked, artifact=broken), WORDS)


def test_others_may_compute_the_shards_in_any_order(asked: Asked) -> None:
    score_corpus(asked, WORDS)

    def backwards(scorer: Scorer, shards: Iterator[Shard]) -> Iterator[tuple[Shard, Any]]:
        for shard in reversed(list(shards)):
            yield shard, scorer(shard)

    other = replace(asked, out=asked.out.with_name("backwards"))
    score_corpus(other, WORDS, run=backwards)
    assert files_of(other.out) == files_of(asked.out)
