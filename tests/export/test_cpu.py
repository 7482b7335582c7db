"""`--target cpu`: the same function, fused; and an audit that notices what was not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gptexport_runtime
import numpy as np
import onnx
import pytest
from builders import SIZES, tiny_huggingface, tiny_nanogpt

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import cpu, export_onnx

L = SIZES["n_layer"]


def make(path: Path, kind: str) -> Path:
    if kind == "tanh":
        return tiny_huggingface(path / "hf", n_embd=48)
    if kind == "scaled":  # Mistral's GPT-2s
        return tiny_huggingface(path / "hf", n_embd=48, scale_attn_by_inverse_layer_idx=True)
    return tiny_nanogpt(path / "ckpt.pt", n_embd=48, bias=kind == "erf")


@pytest.mark.parametrize(
    ("kind", "gelu"), [("tanh", "FastGelu"), ("erf", "BiasGelu"), ("erf without bias", "Gelu"), ("scaled", "FastGelu")]
)
def test_fused_is_the_same_function(tmp_path: Path, kind: str, gelu: str) -> None:
    source = str(make(tmp_path, kind))
    export_onnx(load_checkpoint(source), tmp_path / "portable")
    done = export_onnx(load_checkpoint(source), tmp_path / "cpu", target="cpu")
    assert done.manifest.audit == {op: {"expected": L, "achieved": L} for op in ("GroupQueryAttention", gelu)}
    for name in ("logits", "last", "score"):
        graph = onnx.load(tmp_path / "cpu" / f"{name}.onnx", load_external_data=False).graph
        ops = Counter((node.domain, node.op_type) for node in graph.node)
        assert ops["com.microsoft", "GroupQueryAttention"] == L
        assert ops["", "Split"] == ops["", "Attention"] == ops["", "Gelu"] == 0
        assert ops["", "Transpose"] == 1, "the tied head's; the heads' are gone"
        assert all(len([out for out in n.output if out]) == 1 for n in graph.node if n.op_type == "GroupQueryAttention")
    with gptexport_runtime.load(tmp_path / "portable") as one, gptexport_runtime.load(tmp_path / "cpu") as other:
        for B, T in [(1, 1), (3, 5), (2, 17)]:
            ids = np.random.default_rng(T).integers(0, SIZES["vocab_size"], (B, T))
            np.testing.assert_allclose(other.logits(ids), one.logits(ids), rtol=0, atol=2e-5)
            np.testing.assert_allclose(other.last_logits(ids), one.last_logits(ids), rtol=0, atol=2e-5)
            np.testing.assert_allclose(other.score(ids).logprobs, one.score(ids).logprobs, rtol=0, atol=2e-5)


def test_heads_that_the_kernel_does_not_take_stay_portable(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """head_size 10 is no multiple of 8."""
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    assert done.manifest.audit == {"BiasGelu": {"expected": L, "achieved": L}}
    ops = Counter(
        node.op_type for node in onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph.node
    )
    assert ops["Attention"] == L


def test_a_fusion_that_is_missed_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(str(make(tmp_path, "erf")))
    monkeypatch.setattr(cpu, "_packed_qkv", lambda _: None)
    with pytest.raises(ExportError, match="GroupQueryAttention: 0 of 3"):
        export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "float16"}, "float32 only"), ({"opset": 20}, "needs opset 23 or later")]
)
def test_what_the_target_cannot_do_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(checkpoint, tmp_path / "gpt", target="cpu", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
