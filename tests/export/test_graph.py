"""What is in the files that an export writes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import gptexport_runtime
from gptexport.checkpoints import Checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx, layout
from gptexport.export.verify import Run, check_audit, compare_counts
from gptexport.export.write import WeightsFile
from gptexport_runtime.contract.seal import seal
from tests.support.builders import SIZES


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_operations_stay_whole(bundle: Path) -> None:
    """One Attention per block at opset 23, and no Transpose of a weight but the tied one's."""
    model = onnx.load(bundle / "logits.onnx", load_external_data=False)
    L = SIZES["n_layer"]
    found = operators(bundle / "logits.onnx")
    assert model.opset_import[0].version == 23
    assert (found["Attention"], found["LayerNormalization"], found["Gelu"]) == (L, 2 * L + 1, L)
    weights = {tensor.name for tensor in model.graph.initializer}
    turned = [n.input[0] for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in weights]
    assert turned == ["transformer.wte.weight"]
    for attention in (node for node in model.graph.node if node.op_type == "Attention"):
        assert list(attention.input)[3:] == [], "a mask input rules out the flash kernels"


def test_axes_are_named(bundle: Path) -> None:
    graph = onnx.load(bundle / "logits.onnx", load_external_data=False).graph
    axes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (graph.input[0], graph.output[0])
    ]
    assert axes == [["B", "T"], ["B", "T", SIZES["vocab_size"]]]


def test_weights_have_their_names_and_are_stored_once(bundle: Path) -> None:
    model = onnx.load(bundle / "logits.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
    assert {"transformer.wte.weight", "transformer.h.2.attn.c_attn.weight.T", "transformer.ln_f.bias"} <= names
    assert "lm_head.weight" not in names
    parameters = json.loads((bundle / "gptexport.json").read_text())["parameters"]
    padding = 4096 * len(names)
    assert parameters * 4 <= (bundle / "weights.data").stat().st_size <= parameters * 4 + padding


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    """Tied or not: by what is in them, whatever they are called."""
    weights = {"a": torch.ones(3, 5), "b": torch.ones(3, 5), "c": torch.zeros(2000), "d": torch.ones(5, 3)}
    values = [ir.Value(name=name) for name in weights]
    graph = ir.Model(ir.Graph([], [], nodes=[], initializers=values), ir_version=10)
    file = WeightsFile(tmp_path / "weights.data")
    file.take(weights)
    file.attach(graph.graph)
    entry = file.close()
    data = (tmp_path / "weights.data").read_bytes()
    line = seal(hashlib.sha256(data[: 4096 + 8000]).hexdigest())
    assert entry.bytes == len(data) == 4096 + 8000 + len(line)
    assert data.endswith(line) and str(file.sha256) in line.decode()
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    stored = {value.name: value.const_value for value in values}
    places = {name: tensor.offset for name, tensor in stored.items() if isinstance(tensor, ir.ExternalTensor)}
    assert places == {"a": 0, "b": 0, "c": 4096, "d": 0}
    d = stored["d"]
    assert d is not None
    np.testing.assert_array_equal(d.numpy(), np.ones((5, 3)))


def test_two_exports_are_byte_identical(ckpt: Path, bundle: Path, tmp_path: Path) -> None:
    """From another process, with other hash seeds, in another folder."""
    command = [sys.executable, "-m", "gptexport", "onnx", str(ckpt), "-o", str(tmp_path / "again"), "-q"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "77"}, stdout=subprocess.DEVNULL)
    assert sorted(p.name for p in bundle.iterdir()) == sorted(p.name for p in (tmp_path / "again").iterdir())
    for file in bundle.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_no_path_of_the_machine_is_inside(bundle: Path) -> None:
    for file in bundle.iterdir():
        data = file.read_bytes()
        for trace in (
            b"site-packages",
            b".py",
            str(Path.home()).encode() + b"/",
            str(bundle.parent).encode(),
            b"stack_trace",
        ):
            assert trace not in data, (file.name, trace)


def test_a_lone_graph_holds_its_weights(checkpoint: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    done = export_onnx(checkpoint, tmp_path / "gpt.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["gpt.onnx"]
    assert done.manifest.weights is None
    ids = np.arange(10).reshape(2, 5)
    with gptexport_runtime.load(bundle) as one, gptexport_runtime.load(tmp_path / "gpt.onnx") as other:
        assert other.config.block_size == SIZES["block_size"]
        np.testing.assert_array_equal(one.logits(ids), other.logits(ids))


def test_a_large_lone_graph_has_its_data_beside_it(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "INLINE_BYTES", 1000)
    export_onnx(checkpoint, tmp_path / "gpt.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpt.onnx", "gpt.onnx.data"]
    with gptexport_runtime.load(tmp_path / "gpt.onnx") as gpt:
        assert gpt.logits([[1, 2, 3]]).shape == (1, 3, SIZES["vocab_size"])


@pytest.mark.parametrize(("dtype", "per_weight"), [("float16", 2), ("bfloat16", 2)])
def test_sixteen_bits_halve_the_weights_and_keep_float32_logits(
    checkpoint: Checkpoint, tmp_path: Path, dtype: str, per_weight: int
) -> None:
    done = export_onnx(checkpoint, tmp_path / "gpt", dtype=dtype)
    assert done.manifest.weights is not None
    assert done.manifest.weights.bytes < done.manifest.parameters * per_weight * 1.5 + 4096 * 40
    graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert all(
        a.i == 1 for n in graph.node if n.op_type == "LayerNormalization" for a in n.attribute if a.name == "stash_type"
    )
    assert done.run is (Run.AS_IT_IS if dtype == "float16" else Run.IN_FLOAT32), "the CPU has no bfloat16"
    assert done.check_error < (2e-2 if dtype == "float16" else 1e-5)


def test_an_older_opset_takes_attention_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export_onnx(checkpoint, tmp_path / "gpt", opset=20)
    assert "Attention" not in done.manifest.audit
    assert operators(tmp_path / "gpt" / "logits.onnx")["Softmax"] == SIZES["n_layer"]


def test_audit_fails_when_an_operation_falls_apart() -> None:
    assert compare_counts({"Attention": 2}, {}) == {"Attention": {"expected": 2, "achieved": 0}}
    whole = compare_counts({"Attention": 2}, {"Attention": 2, "Add": 9})
    check_audit(whole)
    short = compare_counts({"Attention": 2, "Gelu": 1}, {"Attention": 1, "Gelu": 1})
    with pytest.raises(ExportError, match=r"\(Attention: 1 of 2\)"):
        check_audit(short)


@pytest.mark.slow
def test_above_two_gigabytes(tmp_path: Path) -> None:
    """protobuf ends at 2 GiB: 2.3 GB of cheap weights, through the checks, both outputs and the runtime."""
    from gptexport.architectures.gpt2 import ARCHITECTURE, GPT, GPTConfig

    config = GPTConfig(block_size=32, vocab_size=270_000, n_layer=1, n_head=8, n_embd=1024, tied=False)

    def make() -> Checkpoint:
        with torch.device("meta"):
            model = GPT(config)
        model = model.to_empty(device="cpu").eval().requires_grad_(False)
        for i, parameter in enumerate(model.parameters()):  # cheap: a ramp
            ramp = torch.arange(parameter.numel(), dtype=torch.int32).remainder_(997 + i).sub_(500)
            parameter.copy_(ramp.view_as(parameter)).mul_(1e-4)
        return Checkpoint(
            model=model,
            architecture=ARCHITECTURE,
            config=config,
            format="made",
            block_size=config.block_size,
            vocab_size=config.vocab_size,
            sha256="",
        )

    for out in (tmp_path / "gpt", tmp_path / "gpt.onnx"):
        done = export_onnx(make(), out)
        assert done.bytes > 2 << 30
        assert done.check_error is not None
        assert done.check_error < 1e-5
        with gptexport_runtime.load(out, prepack=False) as gpt:
            assert gpt.last_logits([[1, 2, 269_999]]).shape == (1, 270_000)
