"""The graphs `last` and `score` say what the logits say, without computing them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn
from onnx import numpy_helper

import gptexport_runtime
from gptexport.checkpoints import Checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx
from gptexport.export.heads import HEAD_GRAPHS
from gptexport.export.targets import PORTABLE, TARGETS
from gptexport.export.trace import trace_logits
from gptexport.export.verify import Sample, check_numbers
from gptexport.recipe import Recipe
from gptexport_runtime.contract.heads import HEADS, SCORE
from tests.support.builders import SIZES, own
from tests.support.few import few

V = SIZES["vocab_size"]


@pytest.fixture(scope="module", params=["float32", "float16"])
def session(
    request: pytest.FixtureRequest, ckpt: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[gptexport_runtime.Session]:
    from gptexport.checkpoints import load_checkpoint

    out = tmp_path_factory.mktemp("heads") / "gpt"
    export_onnx(load_checkpoint(str(ckpt)), out, dtype=request.param)
    with gptexport_runtime.load(out, "cpu") as session:
        yield session


ROWS = [[5, 96, 0, 7, 7], [1], [3, 2, 1, 4, 4, 4, 9, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69], [8, 8]]


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


def constants_of(path: Path, value: int) -> list[onnx.TensorProto]:
    """The Constants that hold `value` and nothing else."""
    tensors = [a.t for node in nodes_of(path) if node.op_type == "Constant" for a in node.attribute]
    return [
        t for t in tensors if t.data_type == onnx.TensorProto.INT64 and numpy_helper.to_array(t).tolist() == [value]
    ]


def tolerance(session: gptexport_runtime.Session) -> float:
    assert session.manifest is not None
    return {"float32": 2e-5, "float16": 2e-3}[session.manifest.dtype]


def test_last_is_the_last_real_token_of_each_row(session: gptexport_runtime.Session) -> None:
    logits = session.logits(ROWS)
    expected = np.stack([logits[i, len(row) - 1] for i, row in enumerate(ROWS)])
    np.testing.assert_allclose(session.last_logits(ROWS), expected, rtol=0, atol=tolerance(session))


def test_score_is_the_log_softmax_of_what_came(session: gptexport_runtime.Session) -> None:
    logits = session.logits(ROWS).astype(np.float64)
    scores = session.score(ROWS)
    assert scores.logprobs.shape == (4, 16)
    for i, row in enumerate(ROWS):
        wide = logits[i, : len(row) - 1]
        expected = [wide[t, row[t + 1]] - np.log(np.exp(wide[t]).sum()) for t in range(len(row) - 1)]
        np.testing.assert_allclose(scores.logprobs[i, : len(row) - 1], expected, rtol=0, atol=tolerance(session))
        assert np.isnan(scores.logprobs[i, len(row) - 1 :]).all()
        assert scores.nll[i] == pytest.approx(-sum(expected), abs=20 * tolerance(session))
    assert scores.counts.tolist() == [4, 0, 16, 1]
    assert np.isnan(scores.perplexity[1])
    assert scores.perplexity[0] == pytest.approx(np.exp(scores.nll[0] / 4))


def test_one_token_has_nothing_to_score(session: gptexport_runtime.Session) -> None:
    assert session.score([[1], [2]]).logprobs.shape == (2, 0)


@pytest.mark.parametrize("chunk", few([7, 1, 48], 1))
def test_score_is_the_same_in_any_chunks(
    session: gptexport_runtime.Session,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    """More positions than a chunk, fewer, and a whole number of chunks: 3 x 16 positions."""
    monkeypatch.setitem(TARGETS, "portable", replace(PORTABLE, score_chunk=chunk))
    export_onnx(checkpoint, tmp_path / "gpt")
    ids = np.random.default_rng(0).integers(0, V, (3, 17))
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as chunked:
        logits = chunked.logits(ids)
        got = chunked.score(ids).logprobs
    expected = SCORE.from_logits(logits, ids, np.full(3, 17))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
    assert constants_of(tmp_path / "gpt" / "score.onnx", chunk), "the graph counts in chunks of this size"


def test_the_score_graph_never_holds_all_logits(bundle: Path) -> None:
    """Outside the loop nothing is V wide but weights."""
    model = onnx.load(bundle / "score.onnx", load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model)
    wide = [v.name for v in inferred.graph.value_info if (d := v.type.tensor_type.shape.dim) and d[-1].dim_value == V]
    assert len(wide) <= 1, wide  # Transpose(wte)
    assert [node.op_type for node in model.graph.node].count("Loop") == 1


def test_every_graph_reads_the_same_weights(bundle: Path) -> None:
    places = []
    for name in ("logits", "last", "score"):
        graph = onnx.load(bundle / f"{name}.onnx", load_external_data=False).graph
        places.append(
            {t.name: [(e.key, e.value) for e in t.external_data] for t in graph.initializer if t.external_data}
        )
    assert places[0] == places[1] == places[2]


def test_graphs_asked_for_are_the_ones_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "gpt", graphs=["logits", "score"])
    assert sorted(p.stem for p in (tmp_path / "gpt").glob("*.onnx")) == ["logits", "score"]
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as session:
        ids = [[1, 2, 3], [4]]
        np.testing.assert_array_equal(session.last_logits(ids)[0], session.logits(ids)[0, 2])


class Shared(nn.Module):
    """Logits that depend on those of other positions."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.head(self.emb(idx)).cumsum(1)


def test_a_head_that_cannot_be_parted_is_refused_only_if_asked_for(tmp_path: Path) -> None:
    trace = trace_logits(Shared().eval(), block_size=8)
    for name in ("last", "score", "decode"):
        with pytest.raises(ExportError, match="the forward ends in CumSum, behind its LM head"):
            HEAD_GRAPHS[name].build(trace, Recipe())
    checkpoint = own(Shared().eval(), block_size=8, vocab_size=11)
    done = export_onnx(checkpoint, tmp_path / "gpt")
    assert list(done.manifest.graphs) == ["logits"] and list(done.manifest.left_out) == ["last", "score", "decode"]
    with pytest.raises(ExportError, match=r"score cannot be made: .* Leave score out of graphs"):
        export_onnx(checkpoint, tmp_path / "other", graphs=["score"])


@pytest.mark.parametrize("kind", ["logits", "last", "score"])
def test_a_graph_that_contradicts_eager_is_refused(bundle: Path, kind: str) -> None:
    ids = np.arange(6).reshape(2, 3)
    wrong = np.random.default_rng(0).normal(size=(2, 3, V)).astype(np.float32)
    with pytest.raises(ExportError, match=f"graph {kind} differs from the eager model"):
        check_numbers(bundle / f"{kind}.onnx", HEADS[kind], [Sample(ids, wrong)], Recipe())
    wrong[:] = np.nan
    with pytest.raises(ExportError, match="differs from the eager model by inf"):
        check_numbers(bundle / f"{kind}.onnx", HEADS[kind], [Sample(ids, wrong)], Recipe())


def test_the_logits_are_written_whatever_else_is_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export_onnx(checkpoint, tmp_path / "gpt", graphs=["score"])
    assert list(done.manifest.graphs) == ["logits", "score"]


def test_a_single_file_holds_no_other_head(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"graphs is logits, score; a single \.onnx holds the logits alone"):
        export_onnx(checkpoint, tmp_path / "gpt.onnx", graphs=["score"])
    assert list(tmp_path.iterdir()) == []
