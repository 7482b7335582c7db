"""Graphs of an artifact are opened as they were asked for, whatever their head is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import TensorProto, helper

from gptexport_runtime import ArtifactError, Session
from gptexport_runtime.backends.base import Backend
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.host import HostRunner
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.heads import LAST, LOGITS, Head, Signature
from gptexport_runtime.contract.names import AXIS_B, AXIS_T, INPUT_IDS, META_VOCAB_SIZE
from tests.support.tiny import TINY, V

ATOL = 2e-5
FILES = {LOGITS.name: TINY / "logits.onnx"}


def runner_of(backend: OrtBackend) -> HostRunner:
    runner = backend.open(LOGITS).runner
    assert isinstance(runner, HostRunner)
    return runner


@pytest.mark.parametrize("option", ["prepack", "spin"])
def test_what_trades_speed_changes_no_number(option: str, expected: Any) -> None:
    key, value, options = {
        "prepack": ("session.disable_prepacking", "1", OpenOptions(prepack=False)),
        "spin": ("session.intra_op.allow_spinning", "0", OpenOptions(spin=False)),
    }[option]
    backend = OrtBackend(CPU, FILES, options)
    assert_allclose(Session(backend, backend.info()).logits(expected.ids), expected.logits, atol=ATOL, rtol=0)
    assert runner_of(backend).session.get_session_options().get_session_config_entry(key) == value


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(threads: int, expected: Any) -> None:
    backend = OrtBackend(CPU, FILES, OpenOptions(threads=threads))
    assert backend.threads == threads
    assert runner_of(backend).session.get_session_options().intra_op_num_threads == threads
    assert_allclose(Session(backend, backend.info()).logits(expected.ids), expected.logits, atol=ATOL, rtol=0)


def test_a_large_batch_runs_a_few_rows_at_a_time(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the whole, row by row: also where the last part is smaller, and a row is too long."""
    backend = OrtBackend(CPU, FILES)
    session, runner = Session(backend, backend.info()), runner_of(backend)
    rows = [row[:length] for row, length in zip(expected.ids, [5, 7, 1], strict=True)]
    whole, last = session.logits(rows), session.last_logits(rows)
    shapes: list[Any] = []
    run = runner._run

    def watched(feed: Any, output: Output, out: Any, cache: Any) -> None:
        shapes.append(feed[INPUT_IDS].shape)
        run(feed, output, out, cache)

    monkeypatch.setattr(runner, "_run", watched)
    for tokens, parts in [(14, [(2, 7), (1, 7)]), (3, [(1, 7)] * 3), (21, [(3, 7)])]:
        monkeypatch.setattr(runner, "_tokens_at_once", tokens)
        shapes.clear()
        assert_allclose(session.logits(rows), whole, atol=ATOL, rtol=0)
        assert shapes == parts
        assert_allclose(session.last_logits(rows), last, atol=ATOL, rtol=0)


def test_a_head_of_the_tests_own_is_opened_and_run(tmp_path: Path, expected: Any) -> None:
    """One object, and its graph: nothing else knows its name."""
    doubled = Head(
        name="doubled",
        signature=Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, "twice", (AXIS_B, AXIS_T, "K")),
        from_logits=lambda logits, _ids, _lengths: logits,
    )
    nodes = [
        helper.make_node("Cast", [INPUT_IDS], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["wide", "axis"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["twice"], axis=2),
    ]
    graph = helper.make_graph(
        nodes,
        "doubled",
        [helper.make_tensor_value_info(INPUT_IDS, TensorProto.INT64, [AXIS_B, AXIS_T])],
        [helper.make_tensor_value_info("twice", TensorProto.FLOAT, [AXIS_B, AXIS_T, 2])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {META_VOCAB_SIZE: str(V)})
    onnx.save(model, tmp_path / doubled.file)
    backend = OrtBackend(CPU, {**FILES, doubled.name: tmp_path / doubled.file})
    session = Session(backend, backend.info())
    got = session.run(doubled, [[1, 2, 3], [4]])
    assert_array_equal(got[0], [[1, 1], [2, 2], [3, 3]])
    assert_array_equal(got[1], [[4, 4], [np.nan, np.nan], [np.nan, np.nan]])


def test_a_graph_of_another_head_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"logits\.onnx is not a last graph: it has input_ids"):
        OrtBackend(CPU, {LAST.name: FILES[LOGITS.name]}).open(LAST)


def test_it_is_all_that_a_session_asks_for() -> None:
    backend: Backend = OrtBackend(CPU, FILES)  # for the type checker
    assert backend.has(LOGITS) and not backend.has(LAST)
    assert (backend.name, backend.device, backend.captured_graphs) == ("onnxruntime", "cpu", 0)
    assert backend.borrow(np.zeros((1, 1), np.int64)) is None
