"""Each axis along which gptexport grows is an object: one more of each, made here alone, works everywhere.

Nothing outside this file names them: they are registered, exported, run, and held to parity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx_ir.tape import Tape

import gptexport_runtime
from gptexport.architectures import ARCHITECTURES, Architecture
from gptexport.architectures.base import check_sizes
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.checkpoints.load import build
from gptexport.checkpoints.types import Stored
from gptexport.export import export_onnx
from gptexport.export.heads import HEAD_GRAPHS, HeadGraph
from gptexport.export.heads.lm_head import finish, without_lm_head
from gptexport.export.rewrites import Audit
from gptexport.export.rewrites.gelu import FUSE_GELUS
from gptexport.export.targets import TARGETS, Target
from gptexport.export.trace import Trace
from gptexport.parity import check_parity
from gptexport.precision import FLOAT32, PRECISIONS, Precision
from gptexport.recipe import Limits, Recipe
from gptexport_runtime.contract.heads import HEADS, Floats, Head, Ids, Signature
from gptexport_runtime.contract.names import AXIS_B, AXIS_T, INPUT_IDS
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli

SHAPES = [(1, 1), (2, 5), (3, 17)]
ROWS = [[5, 96, 0, 7, 7], [1], [8, 8]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(str(tiny_nanogpt(tmp_path_factory.mktemp("axes") / "ckpt.pt")))


def test_a_target(checkpoint: Checkpoint, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GELUs fused, and nothing else."""
    target = Target(
        name="gelus",
        help="fused GELUs",
        takes=lambda precision: precision is FLOAT32,
        rewrites=lambda _precision: [FUSE_GELUS],
        score_chunk=7,
    )
    monkeypatch.setitem(TARGETS, target.name, target)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="gelus")
    assert done.manifest.audit == {"BiasGelu": {"expected": 3, "achieved": 3}}
    assert list(done.manifest.graphs) == list(HEADS), "decode asks the target, which has nothing special to say"
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as session:
        np.testing.assert_array_equal(session.last_logits([[1, 2]]).shape, (1, 97))
        assert len(session.generate([[1, 2]], max_new_tokens=4, temperature=0)[0]) == 4
    assert check_parity(tmp_path / "gpt", checkpoint, shapes=SHAPES).verdict
    assert "gelus" in cli("inspect", tmp_path / "gpt").out


def entropy_of(logits: Floats, _ids: Ids, _lengths: Ids) -> Floats:
    """(B,T): of the next token's distribution, in nats."""
    wide = logits.astype(np.float64)
    logprobs = (
        wide - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True)) - wide.max(-1, keepdims=True)
    )
    return np.asarray(-(np.exp(logprobs) * logprobs).sum(-1), np.float32)


ENTROPY = Head(
    name="entropy",
    signature=Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, "entropy", (AXIS_B, AXIS_T)),
    from_logits=entropy_of,
)


def entropy_graph(logits: Trace, _recipe: Recipe) -> Trace:
    trace, lm_head = without_lm_head(logits, ENTROPY)
    tape = Tape()
    logprobs = tape.op("LogSoftmax", [lm_head.apply(tape, lm_head.hidden)], {"axis": -1})
    axis = tape.op("Constant", [], {"value": ir.tensor([-1], dtype=ir.DataType.INT64)})
    product = tape.op("Mul", [tape.op("Exp", [logprobs]), logprobs])
    total = tape.op("ReduceSum", [product, axis], {"keepdims": 0})
    finish(trace.graph, tape, tape.op("Neg", [total]), "entropy", [AXIS_B, AXIS_T])
    return trace


@pytest.mark.parametrize("wrong", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_head(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    monkeypatch.setitem(HEADS, ENTROPY.name, ENTROPY)
    monkeypatch.setitem(HEAD_GRAPHS, ENTROPY.name, HeadGraph(ENTROPY, entropy_graph))
    export_onnx(checkpoint, tmp_path / "gpt")
    export_onnx(checkpoint, tmp_path / "without", graphs=["logits"])
    with (
        gptexport_runtime.load(tmp_path / "gpt", "cpu") as session,
        gptexport_runtime.load(tmp_path / "without", "cpu") as without,
    ):
        by_graph, by_definition = session.run("entropy", ROWS), without.run("entropy", ROWS)
        assert by_graph.shape == (3, 5) and np.isnan(by_graph[1, 1:]).all()
        np.testing.assert_allclose(by_graph, by_definition, rtol=1e-5)
    if wrong:  # the graph must now be noticed to say something else than the definition
        monkeypatch.setitem(HEADS, ENTROPY.name, replace(ENTROPY, from_logits=lambda *a: entropy_of(*a) * 1.01))
    assert bool(check_parity(tmp_path / "gpt", checkpoint, shapes=SHAPES).verdict) is not wrong


class StoreInFloat16:
    """A quantizer: weights are read from float16 and computed with in float32."""

    def prepare(
        self, model: nn.Module, architecture: Architecture, limits: Limits, progress: Callable[[str], None]
    ) -> list[str]:
        return []

    def quantize(self, trace: Trace) -> Audit:
        for name, tensor in list(trace.weights.items()):
            value = trace.graph.initializers[name]
            stored = ir.Value(name=f"{name}.half", type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape)
            trace.graph.initializers[f"{name}.half"] = stored
            trace.weights[f"{name}.half"] = tensor.half()
            cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
            trace.graph.insert_before(trace.graph[0], cast)
            cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
            value.replace_all_uses_with(cast.outputs[0])
            del trace.graph.initializers[name], trace.weights[name]
        return {}


def test_a_precision(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = Precision(
        name="float16-weights",
        dtype="float32",
        stored_as=("FLOAT16",),
        bits=16,
        eps=FLOAT32.eps,
        gates=PRECISIONS["int8"].gates,
        max_relative_rms=1e-2,
        quantized=True,
        quantizer=StoreInFloat16,
    )
    monkeypatch.setitem(PRECISIONS, precision.name, precision)
    done = export_onnx(checkpoint, tmp_path / "gpt", quantize="float16-weights")
    assert done.manifest.quantize == "float16-weights" and done.manifest.weights is not None
    assert done.manifest.weights.bytes < 2 * done.manifest.parameters + 4096 * 60
    stored = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph.initializer
    assert {tensor.data_type for tensor in stored if tensor.external_data} == {onnx.TensorProto.FLOAT16}
    result = check_parity(tmp_path / "gpt", checkpoint, shapes=SHAPES)
    assert result.verdict and result.measured.precision is precision


@dataclass(frozen=True, kw_only=True)
class NormlessConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_embd: int
    tied: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "block_size", "vocab_size", "n_layer", "n_embd")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Normless(nn.Module):
    """A GPT of attention alone, with one head."""

    def __init__(self, config: NormlessConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.emb, self.pos = nn.Embedding(config.vocab_size, C), nn.Embedding(config.block_size, C)
        self.blocks = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(config.n_layer))
        self.head = nn.Linear(C, config.vocab_size, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        B, T = idx.shape
        x = self.emb(idx) + self.pos(torch.arange(T))
        for block in self.blocks:
            q, k, v = (part.view(B, T, 1, -1).transpose(1, 2) for part in block(x).split(x.shape[-1], dim=2))
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        logits: torch.Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("target", ["portable", "cpu", "cuda"])
def test_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    architecture = Architecture(
        name="normless",
        title="a GPT without norms",
        config=NormlessConfig,
        model=Normless,
        embedding="emb.weight",
        head="head.weight",
        cut_rows={"emb.weight": "vocab_size", "head.weight": "vocab_size", "pos.weight": "block_size"},
        block="blocks.{layer}.",
    )
    monkeypatch.setitem(ARCHITECTURES, architecture.name, architecture)
    config = NormlessConfig(block_size=24, vocab_size=61, n_layer=2, n_embd=16)
    torch.manual_seed(0)
    weights = Normless(config).state_dict()
    weights["head.weight"] = weights["emb.weight"]
    stored = Stored(format="made", path=tmp_path, architecture=architecture, config=config, weights=weights, files=())
    made = build(stored, vocab_size=59, block_size=20)
    done = export_onnx(made, tmp_path / "gpt", target=target)
    assert done.manifest.model == {"architecture": "normless", **asdict(replace(config, vocab_size=59, block_size=20))}
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as session:
        assert len(session.generate([[1, 2]], max_new_tokens=9, temperature=0)[0]) == 9
    assert check_parity(tmp_path / "gpt", made, shapes=[(1, 1), (2, 20)]).verdict
    assert list(done.manifest.graphs) == list(HEADS)
