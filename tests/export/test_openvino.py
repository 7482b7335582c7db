"""`--target openvino`: attention written out, and arithmetic in float32 over weights in 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.contract.manifest import Manifest
from tests.support.builders import SIZES, tiny_fusable


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_fusable(tmp_path_factory.mktemp("openvino"), "tanh"))


def test_in_bfloat16_weights_alone_are_in_16_bits(source: str, tmp_path: Path) -> None:
    """And attention is written out, but in `decode`, whose operator writes into the cache."""
    done = export_onnx(load_checkpoint(source), tmp_path / "gpt", target="openvino", dtype="bfloat16")
    assert done.manifest.audit["attention written out"] == {"expected": SIZES["n_layer"], "achieved": SIZES["n_layer"]}
    assert (done.manifest.runs_on, done.manifest.on_cpu) == (("openvino",), ("decode",))
    assert Manifest.from_json((tmp_path / "gpt" / "gptexport.json").read_text()).on_cpu == ("decode",)
    for head in done.manifest.graphs:
        graph = onnx.load(str(tmp_path / "gpt" / f"{head}.onnx"), load_external_data=False).graph
        stored = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.BFLOAT16}
        readers = {node.op_type for node in graph.node if stored & set(node.input)}
        assert stored and readers == {"Cast"}
        values = [value for value in (*graph.input, *graph.output, *graph.value_info) if value.name not in stored]
        assert TensorProto.BFLOAT16 not in {value.type.tensor_type.elem_type for value in values}
        operators = {node.op_type for node in graph.node}
        assert "Attention" not in operators and ("GroupQueryAttention" in operators) == (head == "decode")


@pytest.mark.slow
def test_in_float32_it_is_a_graph_for_any_cpu(source: str, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(source), tmp_path / "gpt", target="openvino")
    export_onnx(load_checkpoint(source), tmp_path / "portable")
    ids = np.arange(14).reshape(2, 7)
    with (
        gptexport_runtime.load(tmp_path / "gpt", "cpu") as session,
        gptexport_runtime.load(tmp_path / "portable", "cpu") as portable,
    ):
        np.testing.assert_allclose(session.logits(ids), portable.logits(ids), atol=1e-5)
        greedy = [each.generate([[1, 2]], max_new_tokens=5, temperature=0) for each in (session, portable)]
        np.testing.assert_array_equal(greedy[0], greedy[1])


def test_in_bfloat16_the_cpu_provider_is_no_stand_in(source: str, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(source), tmp_path / "gpt", target="openvino", dtype="bfloat16", graphs=["logits"])
    with pytest.raises(BackendUnavailableError, match="--target openvino in bfloat16, which runs on OPENVINO alone"):
        gptexport_runtime.load(tmp_path / "gpt", "cpu")
