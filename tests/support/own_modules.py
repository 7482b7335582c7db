"""GPTs as people write them: each is right, and odd in one way. A catalogue for whatever reads a user's own module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint as recompute

V, C, H, BS = 61, 32, 4, 24
Tensor = torch.Tensor


def causal(T: int) -> Tensor:
    return torch.tril(torch.ones(T, T, dtype=torch.bool))


class Block(nn.Module):
    """Attention and MLP as the model that it belongs to has them."""

    def __init__(self, model: Own) -> None:
        super().__init__()
        self.model = [model]  # in a list: no submodule
        self.norm_1, self.norm_2 = model.norm(C), model.norm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        model.extend(self)

    def heads(self, x: Tensor) -> list[Tensor]:
        """q, k and v (B,H,T,D)."""
        B, T, _ = x.shape
        return [y.view(B, T, H, C // H).transpose(1, 2) for y in self.qkv(x).split(C, -1)]

    def merged(self, y: Tensor) -> Tensor:
        """(B,H,T,D) -> (B,T,C)."""
        return self.proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.model[0].around(self, x)


class Own(nn.Module):
    """The plain one. A kind overrides what it does otherwise."""

    norm: Callable[[int], nn.Module] = nn.LayerNorm

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size = BS
        self.emb, self.pos = nn.Embedding(V, C), nn.Embedding(BS, C)
        self.blocks = nn.ModuleList([Block(self) for _ in range(2)])
        self.ln, self.head = self.norm(C), nn.Linear(C, V, bias=False)
        self.prepare()

    def extend(self, block: Any) -> None: ...
    def prepare(self) -> None: ...

    def around(self, block: Any, x: Tensor) -> Tensor:
        x = x + self.attend(block, block.norm_1(x))
        return x + self.mlp(block, block.norm_2(x))

    def attend(self, block: Any, x: Tensor) -> Tensor:
        q, k, v = self.project(block, x)
        q, k = self.place(q, k)
        return block.merged(self.core(block, q, k, v))

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        """q, k and v (B,H,T,D) of (B,T,C)."""
        return block.heads(x)

    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Put positions into them."""
        return q, k

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B,H,T,D)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.down(F.gelu(block.up(x)))

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) + self.pos(torch.arange(idx.shape[1]))

    def body(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x)
        return self.ln(x)

    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.body(idx))


# How the head is tied.


class TiedByFunction(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return F.linear(self.body(idx), self.emb.weight)


class TiedByProduct(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return self.body(idx) * C**-0.5 @ self.emb.weight.t()


class TiedByEinsum(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return torch.einsum("btc,vc->btv", self.body(idx), self.emb.weight)


class TiedByMemory(Own):
    def prepare(self) -> None:
        self.head.weight.data = self.emb.weight.data


class BiasAfterTheHead(Own):
    def prepare(self) -> None:
        self.bias = nn.Parameter(torch.randn(V))

    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx) + self.bias


class OneBlockManyTimes(Own):
    def prepare(self) -> None:
        self.blocks = nn.ModuleList([self.blocks[0]] * 3)


class OneLinearTwice(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.proj(F.gelu(block.proj(x)))


# Attention, and its mask.


class Multihead(Own):
    def extend(self, block: Any) -> None:
        block.mha = nn.MultiheadAttention(C, H, batch_first=True)

    def attend(self, block: Any, x: Tensor) -> Tensor:
        return block.mha(x, x, x, attn_mask=~causal(x.shape[1]), need_weights=False)[0]


class MultiheadWithWeights(Multihead):
    def attend(self, block: Any, x: Tensor) -> Tensor:
        return block.mha(x, x, x, attn_mask=~causal(x.shape[1]))[0]


class Encoder(Own):
    def prepare(self) -> None:
        layer = nn.TransformerEncoderLayer(C, H, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def body(self, idx: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(idx.shape[1])
        return self.encoder(self.embed(idx), mask=mask, is_causal=True)


class Masked(Own):
    """With a mask (T,T) that is given."""

    def mask(self, T: int) -> Tensor:
        return causal(T)

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(q.shape[2]))


class FloatMask(Masked):
    def mask(self, T: int) -> Tensor:
        return torch.full((T, T), -torch.inf).triu(1)


class MaskOfTheLeastNumber(Masked):
    def mask(self, T: int) -> Tensor:
        return torch.full((1, 1, T, T), torch.finfo(torch.float32).min).triu(1)


class Alibi(Masked):
    def mask(self, T: int) -> Tensor:
        positions = torch.arange(T)
        slopes = 2.0 ** (-8.0 * torch.arange(1, H + 1) / H)
        bias = (positions[None] - positions[:, None]).float() * slopes[:, None, None]
        return bias.masked_fill(~causal(T), -torch.inf)[None]


class Window(Masked):
    def mask(self, T: int) -> Tensor:
        positions = torch.arange(T)
        distance = positions[:, None] - positions[None]
        return (distance >= 0) & (distance < 7)


class ByHand(Own):
    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.hide(self.scores(q, k)).softmax(-1) @ v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5

    def hide(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(~causal(scores.shape[-1]), -torch.inf)


class Softcaps(ByHand):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return 5 * torch.tanh(super().scores(q, k) / 5)

    def forward(self, idx: Tensor) -> Tensor:
        return 15 * torch.tanh(super().forward(idx) / 15)


class Einsum(Own):
    def attend(self, block: Any, x: Tensor) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in block.heads(x))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (C // H) ** -0.5
        weights = scores.masked_fill(~causal(x.shape[1]), -torch.inf).softmax(-1)
        return block.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Rotary(Own):
    """Rotary positions of halves, computed in forward."""

    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.turned(q), self.turned(k)

    def turned(self, x: Tensor) -> Tensor:
        angles = rotary_angles(x.shape[-2], x.shape[-1])
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin


def rotary_angles(T: int, D: int) -> Tensor:
    """(T,D/2)."""
    return torch.outer(torch.arange(T).float(), 10000.0 ** (-torch.arange(0, D, 2).float() / D))


class ComplexRotary(Rotary):
    def prepare(self) -> None:
        angles = rotary_angles(BS, C // H)
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.get_buffer("freqs_cis")[: x.shape[2]]).flatten(-2)


class Convolution(Own):
    def extend(self, block: Any) -> None:
        block.conv = nn.Conv1d(C, C, 3, groups=C)

    def attend(self, block: Any, x: Tensor) -> Tensor:
        return block.proj(block.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2))


# Norms and activations of one's own.


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x)


class GemmaNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class MeanAndVariance(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(size) + 0.5), nn.Parameter(torch.randn(size) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.scale * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.shift


class OwnRMSNorm(Own):
    norm = RMSNorm


class GemmasNorm(Own):
    norm = GemmaNorm

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) * math.sqrt(C)


class OwnLayerNorm(Own):
    norm = MeanAndVariance


class TorchsRMSNorm(Own):
    norm = nn.RMSNorm


class BatchNorm(Own):
    def prepare(self) -> None:
        self.bn = nn.BatchNorm1d(C)
        nn.init.normal_(self.bn.get_buffer("running_mean"))

    def body(self, idx: Tensor) -> Tensor:
        return self.bn(super().body(idx).transpose(1, 2)).transpose(1, 2)


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


gate: Callable[[Tensor], Tensor] = Gate.apply


class CustomFunction(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.down(gate(block.up(x)))


class GeluByHand(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        u = block.up(x)
        return block.down(0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))))


class Experts(Own):
    def extend(self, block: Any) -> None:
        block.gate = nn.Linear(C, 4, bias=False)
        block.experts = nn.ModuleList([nn.Linear(C, C) for _ in range(4)])

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        weights, chosen = block.gate(x).softmax(-1).topk(2, -1)
        outputs = torch.stack([expert(x) for expert in block.experts], -2)
        picked = outputs.gather(-2, chosen[..., None].expand(*chosen.shape, C))
        return (weights[..., None] * picked).sum(-2)


class LowRank(Own):
    def extend(self, block: Any) -> None:
        block.a, block.b = nn.Parameter(torch.randn(4, C) * 0.1), nn.Parameter(torch.randn(C, 4) * 0.1)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return super().mlp(block, x) + x @ block.a.t() @ block.b.t()


class ScaledEmbedding(nn.Embedding):
    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx) * 3.0


class EmbeddingThatScales(Own):
    def prepare(self) -> None:
        self.emb = ScaledEmbedding(V, C)


class WeightNorm(Own):
    def prepare(self) -> None:
        self.head = nn.utils.parametrizations.weight_norm(self.head)


class WeightsInBuffers(Own):
    def prepare(self) -> None:
        self.register_buffer("table", self.emb.weight.data.clone())
        del self.emb

    def embed(self, idx: Tensor) -> Tensor:
        return self.get_buffer("table")[idx] + self.pos(torch.arange(idx.shape[1]))


# How modules are called.


class InPlace(Own):
    def body(self, idx: Tensor) -> Tensor:
        x = self.embed(idx).clone()
        for block in self.blocks:
            x += self.attend(block, block.get_submodule("norm_1")(x))
            x.add_(self.mlp(block, block.get_submodule("norm_2")(x)))
        return self.ln(x)


class ForwardCalled(Own):
    def body(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = block.forward(x)
        return self.ln.forward(x)


class Keywords(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.down(input=F.gelu(block.up(input=x)))


class Hooked(Own):
    def prepare(self) -> None:
        self.head.register_forward_hook(lambda _module, _args, output: output * 1.5)


class Recomputed(Own):
    def body(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = recompute(block, x, use_reentrant=False)
        return self.ln(x)


class InferenceMode(Own):
    @torch.inference_mode()
    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx)


class CompiledInside(Own):
    def prepare(self) -> None:
        for block in self.blocks:
            compiled: Any = torch.compile(block.get_submodule("up"))
            block.add_module("up", compiled)


class CompiledInPlace(Own):
    def prepare(self) -> None:
        self.compile()


# What is special of an id, and what is no number.


class PaddingMask(Masked):
    def mask(self, T: int) -> Tensor:
        return self.seen

    def body(self, idx: Tensor) -> Tensor:
        self.seen = causal(idx.shape[1]) & (idx != 0)[:, None, None, :]
        return super().body(idx)


class Documents(PaddingMask):
    def body(self, idx: Tensor) -> Tensor:
        document = (idx == V - 1).long().cumsum(1)
        self.seen = (causal(idx.shape[1]) & (document[:, :, None] == document[:, None]))[:, None]
        return Own.body(self, idx)


class ForbiddenIds(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx).masked_fill(torch.arange(V) == 5, -torch.inf)


class NoRepeat(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx).masked_fill(torch.arange(V) == idx[..., None], -torch.inf)


class NanForPadding(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return torch.where((idx == 0)[..., None], torch.nan, super().forward(idx))


# What float64 does not get.


class InsistsOnFloat32(Own):
    def forward(self, idx: Tensor) -> Tensor:
        x = self.body(idx)
        assert x.dtype == torch.float32
        return self.head(x)


class HalfPrecision(Own):
    def prepare(self) -> None:
        self.half()


DOUBTFUL = (InsistsOnFloat32,)
KINDS: tuple[type[Own], ...] = (
    Own, TiedByFunction, TiedByProduct, TiedByEinsum, TiedByMemory, BiasAfterTheHead, OneBlockManyTimes, OneLinearTwice,
    Multihead, MultiheadWithWeights, Encoder, FloatMask, MaskOfTheLeastNumber, Alibi, Window, ByHand, Softcaps, Einsum,
    Rotary, ComplexRotary, Convolution, OwnRMSNorm, GemmasNorm, OwnLayerNorm, TorchsRMSNorm, BatchNorm, CustomFunction,
    GeluByHand, Experts, LowRank, EmbeddingThatScales, WeightNorm, WeightsInBuffers, InPlace, ForwardCalled, Keywords,
    Hooked, Recomputed, InferenceMode, CompiledInside, CompiledInPlace, PaddingMask, Documents, ForbiddenIds, NoRepeat,
    NanForPadding, InsistsOnFloat32, HalfPrecision,
)  # fmt: skip
