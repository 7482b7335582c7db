"""A program on its way to the exporter: its numbers as exact as PyTorch keeps them, its key head shared."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.export.trace import trace_logits
from gptexport_runtime import load
from tests.support.few import few

Tensor = torch.Tensor
Operation = Callable[[Tensor], Tensor]

# Each with a number that 16 bits do not hold.
ROUNDED: dict[str, Operation] = {
    "times": lambda x: x * 0.797884,
    "plus": lambda x: x + 0.044715,
    "minus": lambda x: 1.702 - x,
    "over": lambda x: x / 3.3,
    "power": lambda x: x.abs() ** 1.3,
    "alpha": lambda x: torch.add(x, x, alpha=0.3),
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "in place": lambda x: x.clone().mul_(0.3),
    "a tensor": lambda x: x * torch.tensor(0.77),
    "a root": lambda x: x * math.sqrt(2 / math.pi),
}
EXACT: dict[str, Operation] = {
    "a half": lambda x: x * 0.5,
    "an integer": lambda x: x + 3,
    "minus infinity": lambda x: x.masked_fill(torch.zeros(4, dtype=torch.bool), -torch.inf).clamp(min=0.3),
    "a vector": lambda x: x * torch.ones(4, dtype=x.dtype),
}


class Apart(nn.Module):
    """An embedding, the operation, and a head."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size = 8
        self.emb, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.operation = operation

    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.operation(self.emb(idx)))


def computed_in_float32(operation: Operation, dtype: torch.dtype) -> int:
    """How many elementwise operations of the traced graph compute in float32, but for the logits' cast."""
    trace = trace_logits(Apart(operation).to(dtype).eval(), block_size=8)
    return sum(1 for node in trace.graph if node.op_type == "Cast") - 1


@pytest.mark.parametrize("name", few(ROUNDED, 4))
def test_a_number_that_16_bits_do_not_hold_stays_float32(name: str) -> None:
    assert computed_in_float32(ROUNDED[name], torch.bfloat16) >= 2


@pytest.mark.parametrize("name", EXACT)
def test_what_16_bits_hold_costs_nothing(name: str) -> None:
    assert computed_in_float32(EXACT[name], torch.bfloat16) == 0


def test_float32_is_as_it_was() -> None:
    assert computed_in_float32(ROUNDED["times"], torch.float32) <= 0


MODULE = """
import torch, torch.nn as nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)

    def forward(self, idx):
        x = self.emb(idx)
        x = x * (0.797884 + 0.044715 * x) / 3.3
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        y, _ = torch.topk(x, 4)
        x = torch.einsum("btc,c->btc", x, torch.ones_like(x[0, 0])) + y.sum(-1, keepdim=True) * 1.1
        return self.head(x)

def model():
    return Mine()
"""


@pytest.mark.parametrize("target", ["portable", "cuda"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_16_bit_export_is_the_module(tmp_path: Path, target: str, dtype: str) -> None:
    """CUDA has no TopK or Reciprocal in bfloat16: they run in float32; Einsum has become MatMul."""
    source = tmp_path / "mine.py"
    source.write_text(MODULE)
    checkpoint = load_checkpoint(f"{source}:model", block_size=8)
    done = export_onnx(checkpoint, tmp_path / "gpt", target=target, dtype=dtype, graphs=["logits"])
    on_cpu = (target, dtype) == ("portable", "float16")
    assert done.check_error < (2e-3 if on_cpu else 1e-6)
    assert {weight.dtype for weight in checkpoint.model.parameters()} == {torch.float32}, "the model is as it was"
    if (target, dtype) == ("cuda", "bfloat16"):
        graph = onnx.load(str(done.path / "logits.onnx"), load_external_data=False).graph
        types = {node.op_type for node in graph.node}
        assert {"TopK", "Reciprocal"} <= types and "Einsum" not in types


MULTIHEAD = """
import torch, torch.nn as nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, idx):
        x = self.emb(idx)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(x + self.attention(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)[0])

def model():
    return Mine()
"""


def test_float16_on_the_cpu_does_not_crash(tmp_path: Path) -> None:
    """ONNX Runtime 1.31.1 does (SIGSEGV), in a pass for convolutions."""
    source = tmp_path / "mine.py"
    source.write_text(MULTIHEAD)
    export_onnx(load_checkpoint(f"{source}:model", block_size=8), tmp_path / "gpt", dtype="float16")
    with load(tmp_path / "gpt") as gpt:
        assert gpt.last_logits([[1, 2]]).shape == (1, 11)


class OneKeyHead(nn.Module):
    """One head of keys and values for all queries, broadcast by scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.emb(idx)
        B, T, _ = x.shape
        q = self.q(x).view(B, T, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(B, T, 1, 8).transpose(1, 2).chunk(2, -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(y.transpose(1, 2).reshape(B, T, 16))


def test_a_key_head_for_all_queries_is_kept_one() -> None:
    trace = trace_logits(OneKeyHead().eval(), block_size=8)
    (attention,) = (node for node in trace.graph if node.op_type == "Attention")
    assert attention.inputs[1] is not None and str(attention.inputs[1].shape) == "[B,1,T,4]"


def test_a_list_of_indices_is_structure_and_no_weight() -> None:
    trace = trace_logits(Apart(lambda x: x[..., [3, 0, 1, 2]]).eval(), block_size=8)
    assert all(weight.is_floating_point() for weight in trace.weights.values())
