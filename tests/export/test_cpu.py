"""`--target cpu`: the same function, fused; and an audit that notices what was not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn

import gptexport_runtime
from gptexport.architectures.llama import Llama, LlamaConfig
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx
from gptexport.export.rewrites import group_query_attention
from gptexport.export.rewrites.group_query_attention import FLASH_MIN_LENGTH
from gptexport.export.rewrites.widen import LINE, WIDENED
from gptexport.teacher_forcing import feed_pieces
from tests.support.builders import SIZES, own, tiny_fusable, tiny_huggingface, tiny_nanogpt
from tests.support.few import few

L = SIZES["n_layer"]


def assert_same(
    one: gptexport_runtime.Session, other: gptexport_runtime.Session, shapes: list[tuple[int, int]]
) -> None:
    """All that the graphs of two bundles return, at (B,T) each."""
    for B, T in shapes:
        ids = np.random.default_rng(T).integers(0, SIZES["vocab_size"], (B, T))
        np.testing.assert_allclose(other.logits(ids), one.logits(ids), rtol=0, atol=2e-5)
        np.testing.assert_allclose(other.last_logits(ids), one.last_logits(ids), rtol=0, atol=2e-5)
        np.testing.assert_allclose(other.score(ids).logprobs, one.score(ids).logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "gelu"),
    few([("tanh", "FastGelu"), ("erf without bias", "Gelu"), ("erf", "BiasGelu"), ("scaled", "FastGelu")], 2),
)
def test_fused_is_the_same_function(tmp_path: Path, kind: str, gelu: str) -> None:
    source = str(tiny_fusable(tmp_path, kind))
    export_onnx(load_checkpoint(source), tmp_path / "portable")
    done = export_onnx(load_checkpoint(source), tmp_path / "cpu", target="cpu")
    all_of_them, head = {"expected": L, "achieved": L}, {"expected": 1, "achieved": 1}
    assert done.manifest.audit == {"GroupQueryAttention": all_of_them, gelu: all_of_them, "FusedMatMul": head}
    for name in ("logits", "last", "score"):
        graph = onnx.load(tmp_path / "cpu" / f"{name}.onnx", load_external_data=False).graph
        ops = Counter((node.domain, node.op_type) for node in graph.node)
        assert ops["com.microsoft", "GroupQueryAttention"] == L
        assert ops["", "Split"] == ops["", "Attention"] == ops["", "Gelu"] == 0
        assert ops["", "Transpose"] == 0, "neither the heads' nor the tied head's"
        assert all(len([out for out in n.output if out]) == 1 for n in graph.node if n.op_type == "GroupQueryAttention")
    with gptexport_runtime.load(tmp_path / "portable") as one, gptexport_runtime.load(tmp_path / "cpu") as other:
        assert_same(one, other, [(1, 1), (3, 5), (2, 17)])


def test_heads_that_the_kernel_does_not_take_stay_portable(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """head_size 10 is no multiple of 8."""
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    assert {op: row["achieved"] for op, row in done.manifest.audit.items()} == {"BiasGelu": L, "FusedMatMul": 1}
    ops = Counter(
        node.op_type for node in onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph.node
    )
    assert ops["Attention"] == L


def test_a_fusion_that_is_missed_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(str(tiny_fusable(tmp_path, "erf")))
    monkeypatch.setattr(group_query_attention, "attentions", lambda _graph: [])
    with pytest.raises(ExportError, match="GroupQueryAttention: 0 of 3"):
        export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype float16 with target cpu: its kernels are for float32, int8"),
        ({"opset": 20}, "is one node since opset 23"),
    ],
)
def test_what_the_target_cannot_do_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(checkpoint, tmp_path / "gpt", target="cpu", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", few(["erf without bias", "tanh", "erf"], 1))
def test_hidden_layers_that_fill_one_cache_set_are_widened(tmp_path: Path, kind: str) -> None:
    """1024 floats are 4096 bytes. In every graph of the bundle, and nothing changes but the width."""
    sizes: dict[str, Any] = {"n_embd": 256, "n_head": 4, "n_layer": 2}
    if kind == "tanh":
        source = str(tiny_huggingface(tmp_path / "hf", **sizes))
    else:
        source = str(tiny_nanogpt(tmp_path / "ckpt.pt", bias=kind == "erf", **sizes))
    export_onnx(load_checkpoint(source), tmp_path / "portable")
    done = export_onnx(load_checkpoint(source), tmp_path / "cpu", target="cpu")
    assert done.manifest.audit[WIDENED] == {"expected": 2, "achieved": 2}
    for name in ("logits", "last", "score"):
        graph = onnx.load(tmp_path / "cpu" / f"{name}.onnx", load_external_data=False).graph
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if ".h.1.mlp." in tensor.name}
        assert shapes.pop("transformer.h.1.mlp.c_fc.weight.T") == (256, 1024 + LINE)
        assert shapes.pop("transformer.h.1.mlp.c_proj.weight.T") == (1024 + LINE, 256)
        assert shapes.pop("transformer.h.1.mlp.c_fc.bias", (1024 + LINE,)) == (1024 + LINE,)
        assert shapes.pop("transformer.h.1.mlp.c_proj.bias", (256,)) == (256,) and not shapes
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 9))
    with gptexport_runtime.load(tmp_path / "portable") as one, gptexport_runtime.load(tmp_path / "cpu") as other:
        np.testing.assert_allclose(other.logits(ids), one.logits(ids), rtol=0, atol=1e-4)


class Shared(nn.Module):
    """Two layers with one projection: to widen it for one would break the other."""

    block_size, vocab_size = 8, 31

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(31, 8)
        self.up, self.down, self.gate = nn.Linear(8, 1024), nn.Linear(1024, 8), nn.Linear(8, 1024)
        self.lm_head = nn.Linear(8, 31, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        x = x + self.down(nn.functional.gelu(self.gate(x)) * self.up(x))
        logits: torch.Tensor = self.lm_head(x)
        return logits


class Gated(nn.Module):
    """A SwiGLU as in Llama, and the squared ReLU of nanochat, with biases."""

    block_size, vocab_size = 8, 31

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(31, 8)
        self.gate, self.up, self.down = nn.Linear(8, 1024), nn.Linear(8, 1024, bias=False), nn.Linear(1024, 8)
        self.wide, self.narrow = nn.Linear(8, 1024), nn.Linear(1024, 8)
        self.lm_head = nn.Linear(8, 31, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx)
        x = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        x = x + self.narrow(nn.functional.relu(self.wide(x)).square())
        logits: torch.Tensor = self.lm_head(x)
        return logits


def test_hidden_layers_of_llama_and_nanochat_are_widened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Gated().eval()
    ids = torch.arange(12).reshape(2, 6)
    expected = model(ids).detach().numpy()
    done = export_onnx(own(model, block_size=8, vocab_size=31), tmp_path / "gpt", target="cpu")
    assert done.manifest.audit[WIDENED] == {"expected": 2, "achieved": 2}
    graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
    assert sum(1024 + LINE in tensor.dims for tensor in graph.initializer) == 7, "five weights and two biases"
    with gptexport_runtime.load(tmp_path / "gpt") as session:
        np.testing.assert_allclose(session.logits(ids.numpy()), expected, rtol=0, atol=1e-5)


def test_hidden_layers_that_somebody_else_reads_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    ids = torch.arange(12).reshape(2, 6)
    expected = model(ids).detach().numpy()
    checkpoint = own(model, block_size=8, vocab_size=31)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    assert done.manifest.audit[WIDENED] == {"expected": 2, "achieved": 0}
    with gptexport_runtime.load(tmp_path / "gpt") as session:
        np.testing.assert_allclose(session.logits(ids.numpy()), expected, rtol=0, atol=1e-5)


def test_rows_of_many_tokens_take_the_flash_kernel(tmp_path: Path) -> None:
    """Where block_size allows them, each attention has both kernels; on both sides of the border, the same function."""
    sizes: dict[str, Any] = {"block_size": FLASH_MIN_LENGTH + 39, "n_embd": 48, "n_layer": 2}
    source = str(tiny_nanogpt(tmp_path / "ckpt.pt", **sizes))
    export_onnx(load_checkpoint(source), tmp_path / "portable")
    done = export_onnx(load_checkpoint(source), tmp_path / "cpu", target="cpu")
    assert done.manifest.audit["GroupQueryAttention"] == {"expected": 2, "achieved": 2}
    for name in ("logits", "last", "score"):
        graph = onnx.load(tmp_path / "cpu" / f"{name}.onnx", load_external_data=False).graph
        choices = [node for node in graph.node if node.op_type == "If"]
        (is_long,) = {name for node in choices for name in node.input}
        assert [node.op_type for node in graph.node if is_long in node.output] == ["Greater"] and len(choices) == 2
        outputs = {a.name: [len(node.output) for node in a.g.node] for node in choices for a in node.attribute}
        assert outputs == {"then_branch": [3], "else_branch": [1]}, "present K and V are named for the flash kernel"
    with gptexport_runtime.load(tmp_path / "portable") as one, gptexport_runtime.load(tmp_path / "cpu") as other:
        assert_same(one, other, [(2, FLASH_MIN_LENGTH - 1), (2, FLASH_MIN_LENGTH), (1, FLASH_MIN_LENGTH + 39)])


def test_windows_are_fused_with_and_without_a_cache(tmp_path: Path) -> None:
    """Of one key, of fewer than T, of exactly T and of more; in rows of few tokens, of many, in pieces and in steps."""
    config = LlamaConfig(
        n_layer=4,
        n_head=4,
        n_kv_head=2,
        n_embd=32,
        head_size=8,
        n_inner=24,
        vocab_size=61,
        block_size=FLASH_MIN_LENGTH + 3,
        windows=(1, 5, FLASH_MIN_LENGTH, None),
    )
    torch.manual_seed(0)
    model = Llama(config).eval()
    checkpoint = own(model, block_size=config.block_size, vocab_size=61)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu", graphs=["logits", "decode"])
    assert done.manifest.audit["GroupQueryAttention"] == {"expected": 4, "achieved": 4}
    assert done.manifest.audit["RotaryEmbedding"] == {"expected": 8, "achieved": 8}
    nodes = onnx.load(tmp_path / "gpt" / "decode.onnx", load_external_data=False).graph.node
    sizes = [
        next((a.i for a in node.attribute if a.name == "local_window_size"), None)
        for node in nodes
        if node.op_type == "GroupQueryAttention"
    ]
    assert sizes == [1, 5, FLASH_MIN_LENGTH, None]
    ids = torch.randint(61, (2, config.block_size))
    with gptexport_runtime.load(tmp_path / "gpt") as session, torch.no_grad():
        for T in (1, 5, 6, FLASH_MIN_LENGTH - 1, FLASH_MIN_LENGTH + 1):
            expected = model(ids[:, :T]).numpy()
            np.testing.assert_allclose(session.logits(ids[:, :T].numpy()), expected, rtol=0, atol=1e-4)
        for rows, ends in (([0], (3, 5, 11, FLASH_MIN_LENGTH, FLASH_MIN_LENGTH + 1)), ([0, 1], (4, 5, 6, 7))):
            text, expected = ids[rows].numpy(), model(ids[rows]).numpy()
            fed = feed_pieces(session.cache(len(rows)), list(text), [np.full(len(rows), end) for end in ends])
            for end, (_, logits) in zip(ends, fed, strict=True):
                np.testing.assert_allclose(logits, expected[:, end - 1], rtol=0, atol=1e-4)
