"""How a GPT attends: its projections, its scores, its mask. Each class overrides what `Own` does otherwise."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.support.own_modules import (
    BS,
    ByHand,
    C,
    Encoder,
    H,
    Masked,
    Multihead,
    Own,
    Tensor,
    Window,
    causal,
)

D = C // H


# Masks, by hand.


class TrilBuffer(ByHand):
    """nanoGPT's and minGPT's: (1,1,BS,BS), cut to T."""

    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("bias", torch.tril(torch.ones(BS, BS)).view(1, 1, BS, BS))

    def hide(self, scores: Tensor) -> Tensor:
        T = scores.shape[-1]
        return scores.masked_fill(self.get_buffer("bias")[:, :, :T, :T] == 0, float("-inf"))


class HiddenBeforeItIsScaled(ByHand):
    """LLMs-from-scratch's: a buffer of what is ahead, filled in place, then scaled."""

    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("ahead", torch.triu(torch.ones(BS, BS), diagonal=1))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(2, 3)

    def hide(self, scores: Tensor) -> Tensor:
        T = scores.shape[-1]
        scores.masked_fill_(self.get_buffer("ahead").bool()[:T, :T], -torch.inf)
        return scores / D**0.5


class Compared(ByHand):
    def hide(self, scores: Tensor) -> Tensor:
        at = torch.arange(scores.shape[-1])
        return scores.masked_fill(at[None] > at[:, None], float("-inf"))


class Chosen(ByHand):
    def hide(self, scores: Tensor) -> Tensor:
        return torch.where(causal(scores.shape[-1]), scores, torch.tensor(-1e9))


class LeastNumber(ByHand):
    """GPT-2's in Hugging Face: the least number there is."""

    def hide(self, scores: Tensor) -> Tensor:
        least = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        return torch.where(causal(scores.shape[-1]), scores, least)


class AddedInfinity(ByHand):
    """Meta's: a triangle of minus infinity."""

    def hide(self, scores: Tensor) -> Tensor:
        T = scores.shape[-1]
        return scores + torch.triu(torch.full((T, T), float("-inf")), diagonal=1)


class AddedNumber(ByHand):
    """GPT-2's as OpenAI wrote it: what is hidden loses 10,000."""

    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("bias", torch.tril(torch.ones(BS, BS)))

    def hide(self, scores: Tensor) -> Tensor:
        T = scores.shape[-1]
        seen = self.get_buffer("bias")[:T, :T]
        return scores * seen - 1e4 * (1 - seen)


class AddedBuffer(ByHand):
    """llama2.c's: an additive mask that is cut to T."""

    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("mask", torch.full((1, 1, BS, BS), float("-inf")).triu(1))

    def hide(self, scores: Tensor) -> Tensor:
        T = scores.shape[-1]
        return scores + self.get_buffer("mask")[:, :, :T, :T]


class BufferOfTruth(Masked):
    """For scaled_dot_product_attention, cut to T."""

    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("seen", causal(BS))

    def mask(self, T: int) -> Tensor:
        return self.get_buffer("seen")[:T, :T]


class CausalIfLonger(Own):
    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)


class CausalWithoutMask(Own):
    """Karpathy's newer ones: by a flag that says whether there is a cache."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None
        if q.shape[2] == k.shape[2]:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return F.scaled_dot_product_attention(q, k, v)


# Scores, by hand.


class ScaledQueries(ByHand):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q / math.sqrt(D)) @ k.mT


class ScaledBoth(ByHand):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * D**-0.25) @ (k * D**-0.25).transpose(-1, -2)


class LearnedScale(ByHand):
    def extend(self, block: Any) -> None:
        super().extend(block)
        block.temperature = nn.Parameter(torch.full((H, 1, 1), D**-0.5))

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.hide(q @ k.transpose(-2, -1) * block.temperature).softmax(-1) @ v


class Baddbmm(ByHand):
    """Rows and heads in one axis, as in BLOOM and in older GPT-NeoX."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T = q.shape[0], q.shape[2]
        q, k, v = (y.reshape(B * H, T, D) for y in (q, k, v))
        scores = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2), beta=1.0, alpha=D**-0.5)
        weights = self.hide(scores.view(B, H, T, T)).softmax(-1).view(B * H, T, T)
        return torch.bmm(weights, v).view(B, H, T, D)


class Bmm(ByHand):
    """Rows and heads in one axis throughout, as in fairseq."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T = q.shape[0], q.shape[2]
        q, k, v = (y.reshape(B * H, T, D) for y in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)) * D**-0.5
        return torch.bmm(self.hide(scores).softmax(-1), v).view(B, H, T, D)


class BmmWithoutHeads(Own):
    """scaled_dot_product_attention of (B*H,T,D)."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T = q.shape[0], q.shape[2]
        q, k, v = (y.reshape(B * H, T, D) for y in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).view(B, H, T, D)


class EinsumOfHeads(ByHand):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(D)

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhqk,bhkd->bhqd", self.hide(self.scores(q, k)).softmax(-1), v)


class WideSoftmax(ByHand):
    """In float32 whatever the weights are, as in Llama."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.softmax(self.hide(self.scores(q, k)), dim=-1, dtype=torch.float32).type_as(q) @ v


class SoftmaxByHand(ByHand):
    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.hide(self.scores(q, k))
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        return weights / weights.sum(-1, keepdim=True) @ v


class ExpOfLogSoftmax(ByHand):
    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.log_softmax(self.hide(self.scores(q, k)), -1).exp() @ v


class DroppedWeights(ByHand):
    """nanoGPT's, left in train mode as it came from the training loop."""

    def prepare(self) -> None:
        super().prepare()
        self.drop = nn.Dropout(0.1)

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.drop(self.hide(self.scores(q, k)).softmax(-1)) @ v


class CappedScores(ByHand):
    """Gemma 2's."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = super().scores(q, k) / 20.0
        return torch.tanh(scores) * 20.0


class Sink(ByHand):
    """gpt-oss's: a learned score that takes a share of the weights."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.sink = nn.Parameter(torch.randn(1, H, 1, 1))

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.hide(self.scores(q, k))
        sink = block.sink.expand(q.shape[0], -1, q.shape[2], -1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v


class TalkingHeads(ByHand):
    def extend(self, block: Any) -> None:
        super().extend(block)
        block.talk = nn.Conv2d(H, H, 1, bias=False)

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block.talk(self.hide(self.scores(q, k)).softmax(-1)) @ v


class Differential(ByHand):
    """The difference of two attentions, each of half a head's queries and keys."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pairs = zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        one, two = (self.hide(self.scores(a, b)).softmax(-1) for a, b in pairs)
        return (one - 0.3 * two) @ v


# Heads.


class OneHead(nn.Module):
    tril: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, D, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(BS, BS)))

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * D**-0.5
        weights = F.softmax(scores.masked_fill(self.tril[:T, :T] == 0, float("-inf")), dim=-1)
        return weights @ self.value(x)


class HeadsAsModules(Own):
    """The lecture's."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.heads_alone = nn.ModuleList([OneHead() for _ in range(H)])

    def attend(self, block: Any, x: Tensor) -> Tensor:
        return block.proj(torch.cat([head(x) for head in block.heads_alone], dim=-1))


class HeadsInALoop(ByHand):
    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cores = super().core
        return torch.stack([cores(block, q[:, i], k[:, i], v[:, i]) for i in range(H)], dim=1)


class Grouped(Own):
    """Two heads of keys and values for four of queries, repeated."""

    n_kv_head = 2

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.kv = nn.Linear(C, 2 * self.n_kv_head * D, bias=False)

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        q = block.qkv(x)[..., :C].view(B, T, H, D).transpose(1, 2)
        k, v = block.kv(x).view(B, T, 2, self.n_kv_head, D).unbind(2)
        return [q, k.transpose(1, 2), v.transpose(1, 2)]

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().core(block, q, self.repeated(k), self.repeated(v))

    def repeated(self, k: Tensor) -> Tensor:
        return k.repeat_interleave(H // self.n_kv_head, dim=1)


class GroupedByExpansion(Grouped):
    """repeat_kv of Llama."""

    def repeated(self, k: Tensor) -> Tensor:
        B, n, T, _ = k.shape
        return k[:, :, None].expand(B, n, H // n, T, D).reshape(B, H, T, D)


class GroupedByTheKernel(Grouped):
    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class GroupedInFiveAxes(Grouped):
    """By hand, with an axis of groups that matrix products repeat."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, _, T, _ = q.shape
        q = q.reshape(B, self.n_kv_head, -1, T, D)
        scores = (q @ k.unsqueeze(2).transpose(-1, -2) * D**-0.5).masked_fill(~causal(T), -torch.inf)
        return (scores.softmax(-1) @ v.unsqueeze(2)).reshape(B, H, T, D)


class OneKeyHead(Grouped):
    """Multi-query: the matrix product repeats it."""

    n_kv_head = 1

    def repeated(self, k: Tensor) -> Tensor:
        return k


class OneKeyHeadByHand(OneKeyHead, ByHand): ...


class NormedHeads(Own):
    """Norms with a gain, of queries and keys."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.q_norm, block.k_norm = nn.RMSNorm(D, eps=1e-6), nn.LayerNorm(D, bias=False)

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        q, k, v = super().project(block, x)
        return [block.q_norm(q), block.k_norm(k), v]


class GatedHeads(Own):
    """What a head says, times a gate of the token."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.gate = nn.Linear(C, C)

    def attend(self, block: Any, x: Tensor) -> Tensor:
        return block.gate(x).sigmoid() * super().attend(block, x)


class LatentKeys(Own):
    """DeepSeek's: keys and values from a narrow latent; a part of the keys is turned and shared; heads of 12."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.down_kv, block.up_kv = nn.Linear(C, 8 + 4, bias=False), nn.Linear(8, H * 16, bias=False)
        block.latent_norm, block.q12 = nn.RMSNorm(8, eps=1e-6), nn.Linear(C, H * 12, bias=False)

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        latent, shared = block.down_kv(x).split([8, 4], -1)
        k, v = block.up_kv(block.latent_norm(latent)).view(B, T, H, 16).transpose(1, 2).split([8, 8], -1)
        k = torch.cat([k, shared[:, None].expand(B, H, T, 4)], -1)
        return [block.q12(x).view(B, T, H, 12).transpose(1, 2), k, v]


# Projections.


class Separate(Own):
    def extend(self, block: Any) -> None:
        super().extend(block)
        del block.qkv
        block.q, block.k, block.v = (nn.Linear(C, C, bias=False) for _ in range(3))

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        return [linear(x).view(B, T, H, D).transpose(1, 2) for linear in (block.q, block.k, block.v)]


class Permuted(Own):
    """timm's and x-transformers': (B,T,3,H,D) turned to (3,B,H,T,D)."""

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        return list(block.qkv(x).reshape(B, T, 3, H, D).permute(2, 0, 3, 1, 4))


class ByHead(Own):
    """GPT-NeoX's: each head's q, k and v side by side."""

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        return [y.transpose(1, 2) for y in block.qkv(x).view(B, T, H, 3 * D).chunk(3, dim=-1)]


class HeadsInterleaved(Own):
    """einops' "b t (d h) -> b h t d"."""

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        return [y.view(B, T, D, H).permute(0, 3, 1, 2) for y in block.qkv(x).chunk(3, -1)]


class ProductsOfHeads(Own):
    """einsum with weights (H,C,D)."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        del block.qkv
        block.w = nn.Parameter(torch.randn(3, H, C, D) * 0.1)

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        return [torch.einsum("btc,hcd->bhtd", x, w) for w in block.w]


class FlatRows(Own):
    """Conv1D of Hugging Face's GPT-2: addmm over (B*T,C)."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        del block.qkv
        block.w, block.b = nn.Parameter(torch.randn(C, 3 * C) * 0.1), nn.Parameter(torch.randn(3 * C) * 0.1)

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        B, T, _ = x.shape
        flat = torch.addmm(block.b, x.view(-1, C), block.w).view(B, T, 3 * C)
        return [y.view(B, T, H, D).transpose(1, 2) for y in flat.split(C, dim=2)]


class ValuesOfTheFirstLayer(Own):
    """modded-nanogpt's value residual."""

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        q, k, v = super().project(block, x)
        if block is self.blocks[0]:
            self.first = v
        return [q, k, 0.7 * v + 0.3 * self.first]


# Windows.


class WindowByHand(ByHand):
    def hide(self, scores: Tensor) -> Tensor:
        far = torch.arange(scores.shape[-1])[:, None] - torch.arange(scores.shape[-1])
        return scores.masked_fill((far < 0) | (far >= 7), float("-inf"))


class WindowOfTriangles(Masked):
    def mask(self, T: int) -> Tensor:
        return causal(T) & ~torch.tril(torch.ones(T, T, dtype=torch.bool), diagonal=-7)


class LocalAndGlobal(Window):
    """Every other layer sees everything, as in Gemma."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if block is self.blocks[0]:
            return Own.core(self, block, q, k, v)
        return super().core(block, q, k, v)


class Chunked(Masked):
    """Llama 4's: positions see their own chunk of 8."""

    def mask(self, T: int) -> Tensor:
        chunk = torch.arange(T) // 8
        return causal(T) & (chunk[:, None] == chunk[None])


# PyTorch's own modules.


class MultiheadWithHint(Multihead):
    def attend(self, block: Any, x: Tensor) -> Tensor:
        return block.mha(x, x, x, attn_mask=~causal(x.shape[1]), is_causal=True, need_weights=False)[0]


class MultiheadWithFloats(Multihead):
    def attend(self, block: Any, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return block.mha(x, x, x, attn_mask=mask, need_weights=False)[0]


class MultiheadTimeFirst(Own):
    def extend(self, block: Any) -> None:
        super().extend(block)
        block.mha = nn.MultiheadAttention(C, H)

    def attend(self, block: Any, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)  # (T,B,C)
        return block.mha(x, x, x, attn_mask=~causal(x.shape[0]), need_weights=False)[0].transpose(0, 1)


class MultiheadTimeFirstWithWeights(MultiheadTimeFirst):
    def attend(self, block: Any, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return block.mha(x, x, x, attn_mask=~causal(x.shape[0]))[0].transpose(0, 1)


class EncoderWithoutHint(Encoder):
    def body(self, idx: Tensor) -> Tensor:
        return self.encoder(self.embed(idx), mask=nn.Transformer.generate_square_subsequent_mask(idx.shape[1]))


class EncoderOfTheTutorial(Own):
    """Time first, norms behind, the mask of booleans."""

    def prepare(self) -> None:
        layer = nn.TransformerEncoderLayer(C, H, 64, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def body(self, idx: Tensor) -> Tensor:
        x = self.embed(idx).transpose(0, 1)
        return self.encoder(x, mask=~causal(idx.shape[1])).transpose(0, 1)


# What is not attention, or more than that.


class ConvolvedFirst(Own):
    """A short causal convolution in front of the projections, as in Primer and Canon layers."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.conv = nn.Conv1d(C, C, 3, groups=C)

    def project(self, block: Any, x: Tensor) -> list[Tensor]:
        return super().project(block, block.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2))


class ShiftedTokens(Own):
    """RWKV's: half of the channels come from the token before."""

    def attend(self, block: Any, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        return super().attend(block, torch.cat([before[..., : C // 2], x[..., C // 2 :]], -1))


class Linear(Own):
    """Linear attention, by running sums."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        states = (k[..., None] * v[..., None, :]).cumsum(2)
        return (q[..., None, :] @ states).squeeze(-2) / (q * k.cumsum(2)).sum(-1, keepdim=True)


class RunningMean(Own):
    """The lecture's first step: the mean of all that came before."""

    def core(self, block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1)[:, None]


class Prefix(Own):
    """A learned token in front of the text."""

    def prepare(self) -> None:
        super().prepare()
        self.first = nn.Parameter(torch.randn(1, 1, C))

    def body(self, idx: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(idx.shape[0], -1, -1), self.embed(idx)], 1)
        for block in self.blocks:
            x = block(x)
        return self.ln(x)[:, 1:]
