"""Every head of a bundle is held against its definition, a new one too."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gptexport.artifacts import describe_artifact
from gptexport.parity import check_parity
from gptexport.parity.measure.heads import measure_heads
from gptexport_runtime import load
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.heads import Head, Signature

IDS = np.random.default_rng(0).integers(0, 97, (3, 17))


def sum_of_logits(logits: np.ndarray, _ids: np.ndarray, _lengths: np.ndarray) -> np.ndarray:
    return logits.sum(axis=-1)


SUM = Head(name="sum", signature=Signature({"input_ids": ("B", "T")}, "sums", ("B", "T")), from_logits=sum_of_logits)


@pytest.fixture
def summed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle that has a head of its own: the sum of the logits."""
    monkeypatch.setitem(heads.HEADS, SUM.name, SUM)
    return add_sum(Path(shutil.copytree(bundle, tmp_path / "summed")))


def add_sum(bundle: Path, factor: float = 1.0) -> Path:
    model = onnx.load(str(bundle / "logits.onnx"), load_external_data=False)
    graph = model.graph
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["B", "T"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), "last_axis"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    graph.node.append(helper.make_node("ReduceSum", ["logits", "last_axis"], ["summed"], keepdims=0))
    graph.node.append(helper.make_node("Mul", ["summed", "factor"], ["sums"]))
    data = model.SerializeToString()
    (bundle / "sum.onnx").write_bytes(data)
    manifest = json.loads((bundle / "gptexport.json").read_text())
    manifest["graphs"]["sum"] = {
        "file": "sum.onnx",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (bundle / "gptexport.json").write_text(json.dumps(manifest))
    return bundle


def test_a_head_that_parity_has_never_heard_of_is_checked(summed: Path, checkpoint: Path) -> None:
    result = check_parity(summed, str(checkpoint), shapes=[(2, 9)])
    found = {i.name: i.passed for i in result.verdict.invariances}
    assert result and found["sum against logits"]
    add_sum(summed, factor=1.001)
    result = check_parity(summed, str(checkpoint), shapes=[(2, 9)])
    assert not result
    assert [reason.split(":")[0] for reason in result.verdict.reasons] == ["sum against logits"]


def test_each_head_of_a_bundle_says_what_its_logits_say(bundle: Path) -> None:
    artifact = describe_artifact(bundle)
    with load(bundle, "cpu") as session:
        found = measure_heads(session, artifact.heads, [IDS], allowed=1e-5)
    assert [i.name for i in found] == ["last against logits", "score against logits", "decode against logits"]
    assert all(i.passed for i in found)


def test_a_definition_that_is_another_is_seen(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head, the cached one too, against a definition that is off by a little."""
    artifact = describe_artifact(bundle)
    with load(bundle, "cpu") as session:
        for head in artifact.heads[1:]:
            wrong = Head(
                name=head.name,
                signature=head.signature,
                from_logits=lambda *args, head=head: head.from_logits(*args) * np.float32(1.001),
                loops=head.loops,
                cached=head.cached,
            )
            (found,) = measure_heads(session, [wrong], [IDS], allowed=1e-5)
            assert not found.passed, head.name


def test_one_token_has_nothing_to_score(bundle: Path) -> None:
    artifact = describe_artifact(bundle)
    with load(bundle, "cpu") as session:
        found = measure_heads(session, artifact.heads, [IDS[:, :1]], allowed=1e-5)
    assert all(i.passed for i in found)
