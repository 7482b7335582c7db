"""`--target openvino`: attention written out, arithmetic in float32 over weights in 16, 8 and 4 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import check_parity
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.backends.openvino.package import capabilities
from gptexport_runtime.backends.openvino.session import OpenVinoSession
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.contract.manifest import Manifest
from tests.export.test_int8 import relative_rms
from tests.support.builders import SIZES, tiny_fusable, tiny_nanogpt


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


@pytest.mark.parametrize(
    ("dtype", "quantize", "stored"),
    [
        ("bfloat16", None, {TensorProto.BFLOAT16}),
        pytest.param("float32", "int8", {TensorProto.INT8}, marks=pytest.mark.slow),
        ("float32", "int4", {TensorProto.UINT4}),
    ],
)
def test_parity_in_openvino(
    dtype: str, quantize: str | None, stored: set[int], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """On the session that users run. 96 channels are three blocks: an odd number of zero points."""
    pytest.importorskip("openvino")
    source = tiny_nanogpt(tmp_path / "ckpt.pt", n_embd=96)
    checkpoint = load_checkpoint(str(source))
    out = tmp_path / "gpt"
    done = export_onnx(checkpoint, out, target="openvino", dtype=dtype, quantize=quantize)
    assert done.manifest.on_cpu == ("decode",) and not done.manifest.left_out
    if quantize is None:
        assert check_parity(out, checkpoint, device="openvino").verdict
    for head in ("logits", "last", "score"):
        with subtests.test(head=head):
            graph = onnx.load(str(out / f"{head}.onnx"), load_external_data=False).graph
            kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
            assert stored <= kinds, "weights are stored as the target says"
            assert "com.microsoft" not in {node.domain for node in graph.node}
    with gptexport_runtime.load(out, "openvino") as gpt:
        ids = np.arange(24).reshape(2, 12)
        assert (gpt.backend, gpt.device) == ("openvino", "openvino")
        logits = gpt.logits(ids)
        if quantize is not None:
            with gptexport_runtime.load(out, "cpu") as cpu:  # which reads the same weights
                assert relative_rms(logits, cpu.logits(ids)) < 0.05
        # equal to the bit on some CPUs; on others kernels for fewer rows may add in another order
        assert relative_rms(gpt.last_logits(ids), logits[:, -1]) < 0.01
        assert relative_rms(gpt.logits(ids[1:]), logits[1:]) < 0.01, "a row does not depend on its neighbours"
        longer = gpt.generate([[1, 2]], max_new_tokens=4, temperature=0)[0]
        assert len(longer) == 4


def test_weights_in_bfloat16_stay_so_in_memory(source: str, tmp_path: Path) -> None:
    """Of each linear's weight there is no copy in float32, which OpenVINO would make of what is cast."""
    pytest.importorskip("openvino")
    export_onnx(load_checkpoint(source), tmp_path / "gpt", target="openvino", dtype="bfloat16", graphs=["logits"])
    opened = OpenVinoSession(tmp_path / "gpt" / "logits.onnx", OpenOptions(dtype="bfloat16"))
    opened.compile()
    if "BF16" not in capabilities():
        pytest.skip("this CPU does not compute in bfloat16")
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in opened.compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Const" and len(node.get_output_shape(0)) == 2
    ]
    assert kinds.count("bf16") >= 4 * SIZES["n_layer"]


@pytest.mark.parametrize(("quantize", "kind"), [("int8", "i8"), ("int8w", "u8"), ("int4", "u4")])
def test_activations_are_quantized_in_blocks_no_longer_than_the_weights(
    quantize: str, kind: str, tmp_path: Path
) -> None:
    """Else OpenVINO computes in float32, in twice the time."""
    pytest.importorskip("openvino")
    checkpoint = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", n_embd=384)))
    export_onnx(checkpoint, tmp_path / "gpt", target="openvino", quantize=quantize, graphs=["logits"])
    nodes = onnx.load(str(tmp_path / "gpt" / "logits.onnx"), load_external_data=False).graph.node
    blocks = {each.i for node in nodes for each in node.attribute if each.name == "block_size" and each.i}
    opened = OpenVinoSession(tmp_path / "gpt" / "logits.onnx", OpenOptions())
    opened.compile()
    group = opened.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
    assert group == min(blocks, default=128)
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in opened.compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Const" and len(node.get_output_shape(0)) == 2
    ]
    assert kinds.count(kind) >= 4 * SIZES["n_layer"], "weights keep their size in memory"


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
    with pytest.raises(BackendUnavailableError, match="--target openvino in bfloat16, which runs on OpenVINO alone"):
        gptexport_runtime.load(tmp_path / "gpt", "cpu")
