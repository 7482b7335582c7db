"""`--target cuda`: the same function, fused, without a GPU to run it on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

import gptexport_runtime
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx
from gptexport.export.cached import group_query_attention, lengths_on_the_device
from gptexport.export.normalize import normalize
from gptexport.export.rewrites import Audit, Rewrite, side_by_side
from gptexport.export.targets import CUDA, TARGETS, kernels
from gptexport.export.targets.cuda import EFFICIENT, FLASH, MATH
from gptexport.export.trace import Trace, trace_logits
from gptexport.export.verify import Run, Sample, check_numbers, take_samples
from gptexport.export.write import WeightsFile, write_graph
from gptexport.precision import PRECISIONS, Precision
from gptexport.recipe import Limits, Recipe
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.artifact import open_artifact
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import past_names
from tests.support.builders import SIZES, tiny_fusable
from tests.support.cli import Cli
from tests.support.few import few

L = SIZES["n_layer"]
LIMITS = Limits(block_size=SIZES["block_size"], vocab_size=SIZES["vocab_size"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_fusable(tmp_path_factory.mktemp("cuda"), "tanh"))


@pytest.fixture(scope="module")
def bundle(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "gpt"
    export_onnx(load_checkpoint(source), out, target="cuda", dtype="bfloat16")
    return out


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize(
    ("kind", "gelu", "dtype"),
    few(
        [
            ("tanh", "FastGelu", "float16"),
            ("erf", "BiasGelu", "bfloat16"),
            ("erf without bias", "Gelu", "bfloat16"),
            ("scaled", "FastGelu", "float32"),
        ],
        2,
    ),
)
def test_every_fusion_is_there_and_nothing_shuffles_layouts(tmp_path: Path, kind: str, gelu: str, dtype: str) -> None:
    done = export_onnx(load_checkpoint(str(tiny_fusable(tmp_path, kind))), tmp_path / "gpt", target="cuda", dtype=dtype)
    assert done.manifest.audit == {
        name: {"expected": count, "achieved": count}
        for name, count in {"Attention": L, "SkipLayerNormalization": 2 * L + 1, gelu: L, "FusedMatMul": 1}.items()
    }
    assert done.check_error < 1e-5, "far below what 16 bits round: it ran in float32"
    for graph in ("logits", "last", "score"):
        ops = Counter(node.op_type for node in nodes_of(tmp_path / "gpt" / f"{graph}.onnx"))
        assert ops["Transpose"] == ops["LayerNormalization"] == ops["Range"] == 0
        assert ops["Reshape"] == (3 if graph == "score" else 0) and ops["Split"] == ops["Attention"] == L
        assert ops["Add"] == (0 if kind == "erf without bias" else L) + (graph == "score"), (
            "of c_attn's bias, and trips"
        )
    assert sorted(path.name for path in (tmp_path / "gpt").iterdir()) == sorted(
        ["gptexport.json", "weights.data", "logits.onnx", "last.onnx", "score.onnx", "decode.onnx"]
    ), "the float32 graphs are gone"


@pytest.mark.slow
def test_in_float32_the_cpu_runs_it_too(source: str, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(source), tmp_path / "portable")
    export_onnx(load_checkpoint(source), tmp_path / "cuda", target="cuda")
    with (
        gptexport_runtime.load(tmp_path / "portable", "cpu") as one,
        gptexport_runtime.load(tmp_path / "cuda", "cpu") as other,
    ):
        for B, T in [(1, 1), (3, 5), (2, 17)]:
            ids = np.random.default_rng(T).integers(0, SIZES["vocab_size"], (B, T))
            np.testing.assert_allclose(other.logits(ids), one.logits(ids), rtol=0, atol=2e-5)
            np.testing.assert_allclose(other.last_logits(ids), one.last_logits(ids), rtol=0, atol=2e-5)
            np.testing.assert_allclose(other.score(ids).logprobs, one.score(ids).logprobs, rtol=0, atol=2e-5)
        prompts = [[1, 2, 3], [4], [5, 6]]
        texts = [gpt.generate(prompts, max_new_tokens=9, temperature=0) for gpt in (one, other)]
        assert [row.tolist() for row in texts[0]] == [row.tolist() for row in texts[1]]


def test_scores_of_more_positions_than_a_trip_takes(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "cuda", replace(CUDA, score_chunk=7))
    export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", graphs=["logits", "score"])
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (3, 17))
        logits = torch.from_numpy(gpt.logits(ids)).log_softmax(-1)[:, :-1]
        expected = logits.gather(-1, torch.from_numpy(ids[:, 1:, None])).squeeze(-1)
        np.testing.assert_allclose(gpt.score(ids).logprobs, expected, rtol=0, atol=1e-5)


def swap_q_and_k(node: ir.Node) -> None:
    if node.op_type == "Attention":
        q, k = node.inputs[:2]
        node.replace_input_with(0, k)
        node.replace_input_with(1, q)


def wrong_scale(node: ir.Node) -> None:
    if node.op_type == "Attention":
        node.attributes["scale"] = ir.AttrFloat32("scale", 0.3)


def not_causal(node: ir.Node) -> None:
    if node.op_type == "Attention":
        node.attributes["is_causal"] = ir.AttrInt64("is_causal", 0)


def fewer_heads(node: ir.Node) -> None:
    if node.op_type == "Attention":
        for name in ("q_num_heads", "kv_num_heads"):
            node.attributes[name] = ir.AttrInt64(name, 1)


def no_bias_in_the_norm(node: ir.Node) -> None:
    if node.op_type == "SkipLayerNormalization" and len(node.inputs) > 4:
        node.replace_input_with(4, None)


def another_epsilon(node: ir.Node) -> None:
    if node.op_type == "SkipLayerNormalization":
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)


def no_bias_in_the_gelu(node: ir.Node) -> None:
    if node.op_type == "FastGelu":
        node.replace_input_with(1, None)


@pytest.fixture(scope="module")
def traced(source: str) -> tuple[Trace, list[Sample]]:
    """A portable trace in bfloat16, and what the model says in float32 with the same weights."""
    model = load_checkpoint(source).model.bfloat16()
    trace = trace_logits(model, block_size=LIMITS.block_size)
    normalize(trace, model, **asdict(LIMITS))
    wide = model.float()
    return trace, take_samples(wide, LIMITS, longest=trace.longest)


FAULTS = [
    swap_q_and_k,
    wrong_scale,
    not_causal,
    fewer_heads,
    no_bias_in_the_norm,
    another_epsilon,
    no_bias_in_the_gelu,
]


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_wrong_fusion_is_noticed(
    traced: tuple[Trace, list[Sample]], tmp_path: Path, fault: Callable[[ir.Node], None] | None
) -> None:
    trace, samples = traced
    broken = replace(trace, model=trace.model.clone())
    recipe = Recipe.of(target="cuda", dtype="bfloat16")
    for rewrite in recipe.target.rewrites(recipe.precision):
        rewrite.apply(broken.graph, LIMITS)
    RemoveUnusedNodesPass()(broken.model)
    broken.graph.opset_imports["com.microsoft"] = 1
    if fault is not None:
        for node in broken.graph:
            fault(node)
    path, weights = tmp_path / "logits.onnx", WeightsFile(tmp_path / "weights.data")
    weights.take(broken.weights)
    write_graph(broken.model, weights, path)
    weights.close()
    if fault is None:
        assert check_numbers(path, heads.LOGITS, samples, recipe) < 1e-5
    else:
        with pytest.raises(ExportError, match="graph logits differs from the eager model"):
            check_numbers(path, heads.LOGITS, samples, recipe)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["logits.onnx", "weights.data"]


def test_a_rewrite_that_makes_a_graph_wrong_is_undone_and_said(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stay, and what is written is right."""

    def wrong(graph: ir.Graph, _limits: Limits) -> Audit:
        for node in graph:
            swap_q_and_k(node)
        return {}

    rewrites = [*CUDA.rewrites(PRECISIONS["float16"]), Rewrite("a wrong one", wrong)]
    monkeypatch.setitem(TARGETS, "cuda", replace(CUDA, rewrites=lambda _precision: rewrites))
    done = export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", dtype="float16", graphs=["logits"])
    assert done.manifest.checked["rewrites undone"] == "logits: a wrong one"
    assert any("a wrong one undone" in note for note in done.notes)
    assert done.run is Run.IN_FLOAT32 and done.check_error < 1e-5
    assert done.manifest.audit["Attention"] == {"expected": L, "achieved": L}


def test_a_graph_that_is_wrong_without_any_rewrite_fails_the_export(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(trace: Trace, _precision: Precision) -> Audit:
        for node in trace.graph:
            swap_q_and_k(node)
        return {}

    monkeypatch.setitem(TARGETS, "cuda", replace(CUDA, prepare=wrong))
    with pytest.raises(ExportError, match="graph logits differs from the eager model"):
        export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", dtype="float16", graphs=["logits"])
    assert list(tmp_path.iterdir()) == []


def test_a_fusion_that_is_missed_fails_the_export(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "attentions", lambda _graph: [])
    with pytest.raises(ExportError, match="Attention: 0 of 3"):
        export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", graphs=["logits"])


def behind(value: ir.Value | None) -> Iterator[ir.Value]:
    """What a value is computed of, as far as numbers go: a Shape looks at none."""
    node = value.producer() if value is not None else None
    if value is not None:
        yield value
    for source in node.inputs if node is not None and node.op_type != "Shape" else ():
        yield from behind(source)


def test_decode_asks_the_gpu_for_no_number(bundle: Path) -> None:
    """total_sequence_length is read on the host: it may depend on shapes alone."""
    graph = ir.load(bundle / "decode.onnx").graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == L
    for layer, node in enumerate(attentions):
        assert not any(value.is_graph_input() for value in behind(node.inputs[6]))
        assert "past_lengths" in {value.name for value in behind(node.inputs[5])}
        assert tuple(value.name for value in node.inputs[3:5] if value is not None) == past_names(layer)
        assert len(node.outputs) == 3


def test_decode_in_float32_keeps_the_portable_form(source: str, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", graphs=["logits", "decode"])
    ops = Counter(node.op_type for node in nodes_of(tmp_path / "gpt" / "decode.onnx"))
    assert ops["ScatterND"] == 2 * L and ops["Attention"] == L and ops["GroupQueryAttention"] == 0


def test_a_cached_attention_without_a_cuda_kernel_is_undone(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GroupQueryAttention would be in float32: the portable form has kernels."""
    attend = group_query_attention(lengths_on_the_device)
    monkeypatch.setitem(TARGETS, "cuda", replace(CUDA, attend=lambda _precision: attend))
    done = export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", graphs=["logits", "decode"])
    assert done.manifest.checked["rewrites undone"] == "decode: fused attention over the cache"
    ops = Counter(node.op_type for node in nodes_of(tmp_path / "gpt" / "decode.onnx"))
    assert ops["GroupQueryAttention"] == 0 and ops["ScatterND"] == 2 * L and ops["FusedMatMul"] == 1


def test_a_node_without_a_cuda_kernel_fails_the_export(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "without_kernel", lambda _path: ["LayerNormalization of float (n)"])
    with pytest.raises(ExportError, match=r"graph logits has operations .* with CUDA: LayerNormalization of float "):
        export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", graphs=["logits", "decode"])


def test_kernels_are_looked_up_by_type_and_version(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, table = kernels.registered()
    assert kernels.without_kernel(bundle / "score.onnx") == []
    without = {name: [k for k in rows if k.types.get("T") != ["float"]] for name, rows in table.items()}
    monkeypatch.setattr(kernels, "registered", lambda: (version, without))
    assert {line.split(" (")[0] for line in kernels.without_kernel(bundle / "score.onnx")} == {"LogSoftmax of float"}, (
        "within the loop; all else computes in bfloat16, or takes any type"
    )
    old = {name: [k for k in rows if k.since < 17] for name, rows in table.items()}
    monkeypatch.setattr(kernels, "registered", lambda: (version, old))
    assert "Attention of bfloat16" in {line.split(" (")[0] for line in kernels.without_kernel(bundle / "last.onnx")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int8"}, "its kernels are for float32, float16, bfloat16. Pass target cpu"),
        ({"opset": 20}, "is one node since opset 23"),
    ],
)
def test_what_the_target_cannot_do_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(checkpoint, tmp_path / "gpt", target="cuda", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_what_was_checked_and_what_is_expected(bundle: Path) -> None:
    manifest = open_artifact(bundle).manifest
    assert manifest is not None
    assert "in float32" in manifest.checked["run"] and "not checked" in manifest.checked["run"]
    assert manifest.checked["kernels"] == f"registered in onnxruntime-gpu {kernels.registered()[0]}; none has run"
    assert manifest.expected_kernels["Attention"] == [FLASH]


@pytest.mark.parametrize(
    ("dtype", "head_size", "kernels"),
    [
        ("bfloat16", 64, [FLASH]),
        ("float16", 256, [FLASH]),
        ("float32", 64, [EFFICIENT, MATH]),
        ("bfloat16", 264, [EFFICIENT, MATH]),
        ("bfloat16", 12, [MATH]),
    ],
)
def test_expectations(dtype: str, head_size: int, kernels: list[str]) -> None:
    """As ONNX Runtime 1.31.1 decided on a pretended GPU of compute capability 8.0 (scripts/pretend_gpu)."""
    assert CUDA.expected_kernels(PRECISIONS[dtype], [head_size])["Attention"] == kernels


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_gpu_the_loader_says_what_it_needs(bundle: Path, device: Literal["cpu", "auto"]) -> None:
    with pytest.raises(BackendUnavailableError, match="--target cuda in bfloat16, which runs on CUDA alone"):
        gptexport_runtime.load(bundle, device)


def test_two_exports_are_the_same_bytes(source: str, bundle: Path, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cuda", dtype="bfloat16")
    for file in bundle.iterdir():
        assert (tmp_path / "gpt" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.slow
def test_the_commands(cli: Cli, source: str, bundle: Path, tmp_path: Path) -> None:
    ran = cli("parity", bundle, "--against", source)
    assert ran.code == 4 and "--target cuda in bfloat16, which runs on CUDA alone" in ran.err
    ran = cli("parity", bundle, "--against", source, "--device", "cuda")
    assert ran.code == 4 and "has no CUDA" in ran.err
    ran = cli("onnx", source, "-o", tmp_path / "gpt", "--target", "cuda", "--graphs", "logits,decode")
    assert ran.code == 0 and "7 of 7 SkipLayerNormalization" in ran.err and "none has run" in ran.err
    assert "EFFICIENT_ATTENTION or MATH expected" in ran.err
    ran = cli("parity", tmp_path / "gpt", "--against", source, "--shapes", "1x1,2x9,1x17")
    assert ran.code == 0, ran.out + ran.err
    text = cli("inspect", bundle).out
    assert "checked" in text and "run in float32, on the CPU" in text and "not checked: gptexport parity" in text


@pytest.mark.parametrize("short", [False, True])
def test_logits_as_they_are_computed(short: bool, source: str, tmp_path: Path) -> None:
    """The head has columns of zeros up to a multiple of 64; only `logits` shows them; the export has run all graphs."""
    done = export_onnx(
        load_checkpoint(source),
        tmp_path / "gpt",
        target="cuda",
        dtype="float16",
        pad_vocab=True,
        native_logits=short,
    )
    assert done.manifest.audit["LM head of padded rows"] == {"expected": 1, "achieved": 1}
    V, row = SIZES["vocab_size"], -(-SIZES["vocab_size"] // 64) * 64
    for name in ("logits", "last", "score", "decode"):
        model = onnx.load(tmp_path / "gpt" / f"{name}.onnx", load_external_data=False)
        told = {entry.key: entry.value for entry in model.metadata_props}
        output = model.graph.output[0].type.tensor_type
        assert told["gptexport.vocab_size"] == str(V)
        assert told.get("gptexport.logits_row") == (str(row) if name == "logits" else None)
        if name == "logits":
            assert output.shape.dim[2].dim_value == row
            assert output.elem_type == (onnx.TensorProto.FLOAT16 if short else onnx.TensorProto.FLOAT)
            assert [node.op_type for node in model.graph.node][-1] == ("FusedMatMul" if short else "Cast")
        else:
            assert output.elem_type == onnx.TensorProto.FLOAT


class WithBias(torch.nn.Module):
    """A head of its own with a bias, and a softcap behind it."""

    block_size, vocab_size = 8, 37

    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(37, 16)
        self.head = torch.nn.Linear(16, 37)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = 15 * torch.tanh(self.head(self.wte(idx)) / 15)
        return logits


def test_a_head_with_bias_and_softcap_is_padded_too(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("from tests.export.test_cuda import WithBias\nmake = WithBias\n")
    checkpoint = load_checkpoint(f"{tmp_path / 'model.py'}:make")
    out = tmp_path / "gpt"
    done = export_onnx(checkpoint, out, target="cuda", dtype="float16", graphs=["logits", "last"], pad_vocab=True)
    assert done.manifest.audit["LM head of padded rows"]["achieved"] == 1
    model = onnx.load(out / "logits.onnx", load_external_data=False)
    assert model.graph.output[0].type.tensor_type.shape.dim[2].dim_value == 64


def test_logits_are_laid_out_for_16_bits_on_a_gpu_alone(source: str, tmp_path: Path) -> None:
    for target in ("cpu", "cuda", None):
        with pytest.raises(ExportError, match="it is for 16-bit floats on a GPU"):
            export_onnx(load_checkpoint(source), tmp_path / "gpt", pad_vocab=True, target=target)


def test_no_trip_of_score_waits_for_the_gpu(bundle: Path) -> None:
    """Where a trip begins is a shape, which ONNX Runtime knows on the host."""
    graph = onnx.load(bundle / "score.onnx", load_external_data=False).graph
    loop = next(node for node in graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    trip = body.input[0].name
    assert not any(trip in node.input for node in body.node)
    by_output = {node.output[0]: node.op_type for node in body.node}
    starts = {by_output[node.input[1]] for node in body.node if node.op_type == "Slice"}
    assert starts == {"Shape"}
