"""Attention, softmax and products in spellings of their own: each becomes the node it is; what looks alike does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator

from gptexport.errors import ExportError
from gptexport.export.normalize import normalize
from gptexport.export.rewrites.by_hand import recognise_attention
from gptexport.export.trace import Trace, trace_logits
from tests.support.few import few

V, C, H, D, T_MAX = 13, 16, 2, 8, 12
Tensor = torch.Tensor
Core = Callable[[Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    """One attention, made by `core` of q, k and v (B,H,T,D), and a head."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.qkv, self.head = nn.Embedding(V, C), nn.Linear(C, 3 * C), nn.Linear(C, V)
        self.core = core

    def forward(self, idx: Tensor) -> Tensor:
        B, T = idx.shape
        q, k, v = (part.view(B, T, H, D).transpose(1, 2) for part in self.qkv(self.emb(idx)).split(C, -1))
        return self.head(self.core(q, k, v).transpose(1, 2).reshape(B, T, C))


def recognised(core: Core) -> tuple[Trace, Counter[str]]:
    """The graph after recognition, checked against the model; and its operators."""
    model = Model(core).eval()
    trace = trace_logits(model, block_size=T_MAX)
    normalize(trace, model, block_size=T_MAX, vocab_size=V)
    recognise_attention(trace, block_size=T_MAX)
    ops = Counter(node.op_type for node in trace.graph)
    for name, weight in trace.weights.items():
        trace.graph.initializers[name].const_value = ir.tensor(weight.contiguous().numpy())
    ids = torch.randint(0, V, (3, 7))
    run = ReferenceEvaluator(ir.to_proto(trace.model))
    (logits,) = run.run(None, {"input_ids": ids.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(np.asarray(logits), model(ids).numpy(), atol=2e-5)
    return trace, ops


def ahead(T: int) -> Tensor:
    return torch.triu(torch.ones(T, T, dtype=torch.bool), 1)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) * D**-0.5


def hidden(q: Tensor, k: Tensor) -> Tensor:
    return scores(q, k).masked_fill(ahead(q.shape[2]), -torch.inf)


def reversed_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows and heads in one axis, rows the inner ones."""
    B, _, T, _ = q.shape
    q, k, v = (part.transpose(0, 1).reshape(H * B, T, D) for part in (q, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).masked_fill(ahead(T), -torch.inf).softmax(-1)
    return torch.bmm(weights, v).view(H, B, T, D).transpose(0, 1)


ONE_NODE: dict[str, Core] = {
    "einsum": lambda q, k, v: torch.einsum("bhts,bhsd->bhtd", hidden(q, k).softmax(-1), v),
    "three operands": lambda q, k, v: torch.einsum("bhts,bhsd,h->bhtd", hidden(q, k).softmax(-1), v, torch.ones(H)),
    "exp of log_softmax": lambda q, k, v: hidden(q, k).log_softmax(-1).exp() @ v,
    "exp over its sum": lambda q, k, v: (e := hidden(q, k).exp()) / e.sum(-1, keepdim=True) @ v,
    "a softcap": lambda q, k, v: (
        (3 * torch.tanh(scores(q, k) / 3)).masked_fill(ahead(q.shape[2]), -1e9).softmax(-1) @ v
    ),
    "masks added and chosen": lambda q, k, v: (hidden(q, k) + ahead(q.shape[2]) * -1e9).softmax(-1) @ v,
}
NOT_ONE: dict[str, tuple[Core, str]] = {
    "a softmax over queries": (lambda q, k, v: hidden(q, k).softmax(-2) @ v, "its softmax is not over the last axis"),
    "squared scores": (lambda q, k, v: (scores(q, k) * scores(q, k)).softmax(-1) @ v, "Mul joins its scores"),
    "relu of scores": (lambda q, k, v: F.relu(hidden(q, k)).softmax(-1) @ v, "Relu is applied to its scores"),
    "weights that are read twice": (
        lambda q, k, v: (w := hidden(q, k).softmax(-1)) @ v + w.sum(-1, keepdim=True),
        "its weights are read more than once",
    ),
    "a scale for each position": (
        lambda q, k, v: (hidden(q, k) * (1 + torch.arange(q.shape[2])[:, None])).softmax(-1) @ v,
        "a scale of their own for each position",
    ),
    "added inside of a softcap": (
        lambda q, k, v: torch.tanh(scores(q, k) + torch.arange(q.shape[2])).softmax(-1) @ v,
        "inside of the softcap",
    ),
    "a scale of the token": (
        lambda q, k, v: (hidden(q, k) * v.mean(-1, keepdim=True)).softmax(-1) @ v,
        "Mul joins its scores with what depends on the tokens",
    ),
}


@pytest.mark.parametrize("name", ONE_NODE)
def test_it_becomes_one_node(name: str) -> None:
    trace, ops = recognised(ONE_NODE[name])
    assert ops["Attention"] == 1 and not ops["Softmax"] and not ops["Einsum"] and trace.by_hand == []
    (node,) = (node for node in trace.graph if node.op_type == "Attention")
    assert node.attributes.get_int("is_causal", 0) == 1 and len(node.inputs) == 3


@pytest.mark.parametrize("name", few(NOT_ONE, 3))
def test_what_looks_alike_is_left(name: str) -> None:
    core, reason = NOT_ONE[name]
    trace, ops = recognised(core)
    assert not ops["Attention"] and len(trace.by_hand) == 1 and reason in trace.by_hand[0]


def test_rows_and_heads_in_the_other_order_are_still_the_same_function() -> None:
    """Each row of a batch is by itself; a cache, whose rows they are not, is refused by running it."""
    _, ops = recognised(reversed_heads)
    assert ops["Attention"] == 1


@pytest.mark.parametrize(
    ("condition", "causal"), [(lambda T: T > 1, True), (lambda T: T >= 2, True), (lambda T: T != 1, True)]
)
def test_a_condition_on_the_length_is_causality(condition: Callable[[int], bool], causal: bool) -> None:
    trace, _ = recognised(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=condition(q.shape[2])))
    (node,) = (node for node in trace.graph if node.op_type == "Attention")
    assert node.attributes.get_int("is_causal", 0) == causal


def test_causality_from_some_length_on_is_refused() -> None:
    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 5)

    with pytest.raises(ExportError, match="a graph is causal at every T or at none"):
        trace_logits(Model(core).eval(), block_size=T_MAX)
