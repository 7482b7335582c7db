"""GPTs as people write them: each exports, has one attention node a block, is fused, and generates from a cache."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import gptexport_runtime
from gptexport.export import export_onnx
from tests.support.builders import own

V, C, H, D, L, S = 61, 48, 3, 16, 2, 24


@dataclass(frozen=True)
class Style:
    """How a GPT is written."""

    attention: str = "sdpa"  # or by hand: how the mask is made
    rotary: str | None = None
    n_kv_head: int = H
    window: int | None = None
    alibi: bool = False
    softcap: float | None = None
    rms: bool = False
    alone: bool = False  # each head a module of its own


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    tril: torch.Tensor
    angles: torch.Tensor
    turns: torch.Tensor
    slopes: torch.Tensor

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.style = style
        self.q, self.o = nn.Linear(C, C), nn.Linear(C, C)
        self.k, self.v = nn.Linear(C, style.n_kv_head * D), nn.Linear(C, style.n_kv_head * D)
        self.register_buffer("tril", torch.tril(torch.ones(S, S)))
        angles = torch.outer(torch.arange(S).float(), 100.0 ** -(torch.arange(0, D, 2) / D))
        self.register_buffer("angles", angles)  # (S, D/2)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, H + 1).view(H, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        style, (B, T, _) = self.style, x.shape
        q = self.rotate(self.q(x).view(B, T, H, D)).transpose(1, 2)  # (B,H,T,D)
        k = self.rotate(self.k(x).view(B, T, -1, D)).transpose(1, 2)
        v = self.v(x).view(B, T, -1, D).transpose(1, 2)
        if style.n_kv_head != H:
            k, v = (part.repeat_interleave(H // style.n_kv_head, dim=1) for part in (k, v))
        y = self.attend(q, k, v, T).transpose(1, 2).reshape(B, T, C)
        out: torch.Tensor = self.o(y)
        return out

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        T = x.shape[1]
        if self.style.rotary is None:
            return x
        if self.style.rotary == "complex":
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * self.turns[:T].view(1, T, 1, -1)).flatten(3)
        if self.style.rotary == "on the fly":
            frequencies = 100.0 ** -(torch.arange(0, D, 2) / D)
            angles = torch.arange(T).float()[:, None] * frequencies[None]
        else:
            angles = self.angles[:T]
        cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, T: int) -> torch.Tensor:
        style = self.style
        if style.attention == "sdpa" and style.window is None and not style.alibi:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        far = torch.arange(T)[:, None] - torch.arange(T)[None]  # (T,T): how far back a key is
        seen = far >= 0
        if style.window is not None:
            seen = seen & (far < style.window)
        if style.alibi:
            bias = (-far * self.slopes).masked_fill(~seen, float("-inf"))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        if style.attention == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        if style.alone:
            heads = zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
            return torch.stack([self.by_hand(q, k, v, seen, T) for q, k, v in heads], dim=1)
        return self.by_hand(q, k, v, seen, T)

    def by_hand(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, T: int) -> torch.Tensor:
        style = self.style
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)
        if style.softcap is not None:
            scores = style.softcap * torch.tanh(scores / style.softcap)
        if style.attention == "buffer":
            scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        elif style.attention == "large number":
            scores = torch.where(seen, scores, -1e9)
        elif style.attention == "added":
            scores = scores + torch.triu(torch.full((T, T), float("-inf")), diagonal=1)
        else:
            scores = scores.masked_fill(~seen, float("-inf"))
        return scores.softmax(dim=-1) @ v


class GPT(nn.Module):
    def __init__(self, style: Style) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.pos = nn.Embedding(V, C), nn.Embedding(S, C)
        norm = RMSNorm if style.rms else lambda: nn.LayerNorm(C)
        self.norms, self.last = nn.ModuleList(norm() for _ in range(L)), norm()
        self.blocks = nn.ModuleList(Attention(style) for _ in range(L))
        self.head = nn.Linear(C, V, bias=False)
        self.learned = style.rotary is None

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.emb(idx)
        if self.learned:
            x = x + self.pos(torch.arange(idx.shape[1]))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        logits: torch.Tensor = self.head(self.last(x))
        return logits


FUSED = {
    "by hand, from a buffer": Style(attention="buffer"),
    "by hand, compared": Style(attention="compared"),
    "by hand, a large number": Style(attention="large number"),
    "by hand, added": Style(attention="added", rms=True),
    "rotary by complex numbers": Style(rotary="complex", rms=True),
    "rotary by halves, from a buffer": Style(rotary="buffer", attention="added"),
    "heads one by one": Style(attention="buffer", alone=True),
    "rotary on the fly, grouped": Style(rotary="on the fly", n_kv_head=1, rms=True),
}
CACHED = {
    "sliding window": Style(window=5),
    "sliding window by hand": Style(window=5, attention="compared", rotary="buffer"),
    "alibi": Style(alibi=True),
    "softcap": Style(attention="compared", softcap=3.0),
}


@pytest.mark.parametrize("name", [*FUSED, *CACHED])
def test_what_people_write_is_fused_and_generates(name: str, tmp_path: Path) -> None:
    model = GPT({**FUSED, **CACHED}[name])
    checkpoint = own(model, block_size=S, vocab_size=V)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    assert "decode" in done.manifest.graphs, done.manifest.left_out
    ops = Counter(n.op_type for n in onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph.node)
    assert ops["Softmax"] == 0, "one node each"
    nodes = L * H if name == "heads one by one" else L
    assert (ops["GroupQueryAttention"], ops["Attention"]) == ((nodes, 0) if name in FUSED else (0, nodes))
    prompt = [[5, 60, 0], [7]]
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as session, torch.no_grad():
        ids = np.random.default_rng(0).integers(0, V, (2, S))
        np.testing.assert_allclose(session.logits(ids), model(torch.from_numpy(ids)).numpy(), rtol=0, atol=2e-5)
        texts = session.generate(prompt, temperature=0)
        for row, new in zip(prompt, texts, strict=True):
            whole = torch.tensor([[*row, *new.tolist()]])
            assert whole.shape[1] == S
            assert model(whole).argmax(-1)[0, len(row) - 1 : -1].tolist() == new.tolist()


class Looks(GPT):
    """The mean of all that came before is no attention."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.emb(idx)
        steps = torch.arange(1, idx.shape[1] + 1)[None, :, None]
        logits: torch.Tensor = self.head(x + x.cumsum(1) / steps)
        return logits


class SeesAhead(GPT):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        B, T = idx.shape
        x = self.emb(idx).view(B, T, H, D).transpose(1, 2)
        logits: torch.Tensor = self.head(F.scaled_dot_product_attention(x, x, x).transpose(1, 2).reshape(B, T, C))
        return logits


@pytest.mark.parametrize(
    ("made", "reason"), [(Looks, "the forward has CumSum across positions"), (SeesAhead, "attention sees later tokens")]
)
def test_what_cannot_be_cached_says_why(made: type[GPT], reason: str, tmp_path: Path) -> None:
    done = export_onnx(own(made(Style()), block_size=S, vocab_size=V), tmp_path / "gpt")
    assert reason in done.manifest.left_out["decode"]
