"""Where a GPT's positions come from. Each class overrides what `Own` does otherwise, and goes with the others."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.support.own_modules import BS, ByHand, C, H, Masked, Own, Rotary, Tensor, causal, rotary_angles

D = C // H


class NoPositions(Own):
    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx)


class CutParameter(Own):
    def prepare(self) -> None:
        super().prepare()
        self.places = nn.Parameter(torch.randn(1, BS, C))

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) + self.places[:, : idx.shape[1]]


class IdsInABuffer(Own):
    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("position_ids", torch.arange(BS)[None])

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) + self.pos(self.get_buffer("position_ids")[:, : idx.shape[1]])


class IdsCounted(Own):
    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) + self.pos(torch.ones_like(idx).cumsum(1) - 1)


class IdsExpanded(Own):
    def embed(self, idx: Tensor) -> Tensor:
        B, T = idx.shape
        return self.emb(idx) + self.pos(torch.arange(T).unsqueeze(0).expand(B, T))


class IdsWithAnOffset(Own):
    """OPT's: the table has two rows in front."""

    def prepare(self) -> None:
        super().prepare()
        self.pos = nn.Embedding(BS + 2, C)

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) + self.pos(torch.arange(idx.shape[1]) + 2)


def waves(T: int) -> Tensor:
    """(T,C): sines and cosines."""
    angles = torch.arange(T)[:, None] * torch.exp(torch.arange(0, C, 2) * (-9.21 / C))
    table = torch.zeros(T, C)
    table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
    return table


class SinusoidalBuffer(Own):
    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("waves", waves(BS))

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) * C**0.5 + self.get_buffer("waves")[: idx.shape[1]]


class SinusoidalInForward(Own):
    def embed(self, idx: Tensor) -> Tensor:
        angles = torch.arange(idx.shape[1])[:, None] / 10000 ** (torch.arange(0, C, 2) / C)
        return self.emb(idx) + torch.cat([angles.sin(), angles.cos()], -1)


class SinusoidalWrittenInto(Own):
    """Into a table of zeros, a column in two."""

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx) + waves(idx.shape[1])


class HalvesFromBuffers(Rotary):
    def prepare(self) -> None:
        super().prepare()
        angles = torch.cat([rotary_angles(BS, D)] * 2, -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        T = x.shape[-2]
        a, b = x.chunk(2, -1)
        return x * self.get_buffer("cos")[:T] + torch.cat([-b, a], -1) * self.get_buffer("sin")[:T]


class HalvesByIds(HalvesFromBuffers):
    """By position ids, as in Hugging Face's models."""

    def turned(self, x: Tensor) -> Tensor:
        ids = torch.arange(x.shape[-2]).unsqueeze(0)
        cos, sin = (self.get_buffer(name)[ids].unsqueeze(1) for name in ("cos", "sin"))
        a, b = x[..., : D // 2], x[..., D // 2 :]
        return x * cos + torch.cat((-b, a), dim=-1) * sin


class FrequenciesInABuffer(Rotary):
    """And angles by a matrix product in forward."""

    def prepare(self) -> None:
        super().prepare()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, D, 2).float() / D), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-2])[None, None, :].float()
        angles = (self.get_buffer("inv_freq")[None, :, None].float() @ positions).transpose(1, 2)
        table = torch.cat((angles, angles), dim=-1)
        a, b = x.chunk(2, -1)
        cos, sin = table.cos().to(x.dtype).unsqueeze(1), table.sin().to(x.dtype).unsqueeze(1)
        return x * cos + torch.cat([-b, a], -1) * sin


class EvenAndOdd(Rotary):
    """Interleaved: even and odd columns."""

    def turned(self, x: Tensor) -> Tensor:
        angles = rotary_angles(x.shape[-2], D)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).flatten(-2)


class Pairs(Rotary):
    """Interleaved: pairs of columns."""

    def turned(self, x: Tensor) -> Tensor:
        angles = rotary_angles(x.shape[-2], D)
        cos, sin = angles.cos()[None, None, ..., None], angles.sin()[None, None, ..., None]
        pairs = x.float().reshape(*x.shape[:-1], -1, 2)
        turned = torch.cat([-pairs[..., 1:], pairs[..., :1]], -1)
        return (pairs * cos + turned * sin).flatten(3).type_as(x)


class RepeatedAngles(Rotary):
    """Interleaved: each angle twice, as rotary-embedding-torch does."""

    def turned(self, x: Tensor) -> Tensor:
        angles = rotary_angles(x.shape[-2], D).repeat_interleave(2, dim=-1)
        pairs = x.unflatten(-1, (-1, 2))
        a, b = pairs.unbind(-1)
        return x * angles.cos() + torch.stack((-b, a), -1).flatten(-2) * angles.sin()


class PartOfAHead(HalvesFromBuffers):
    """The first half of each head, as in GPT-J and GPT-NeoX."""

    def prepare(self) -> None:
        Own.prepare(self)
        angles = torch.cat([rotary_angles(BS, D // 2)] * 2, -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        return torch.cat([super().turned(x[..., : D // 2]), x[..., D // 2 :]], -1)


class ComplexAttribute(Rotary):
    """Meta's freqs_cis, an attribute and no buffer."""

    def prepare(self) -> None:
        super().prepare()
        self.freqs_cis = torch.polar(torch.ones(BS, D // 2), rotary_angles(BS, D))

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        cis = self.freqs_cis[: x.shape[2]].view(1, 1, x.shape[2], D // 2)
        return torch.view_as_real(pairs * cis).flatten(3).type_as(x)


class TurnedBeforeHeads(Rotary):
    """Where T is still in front of the heads: (B,T,H,D)."""

    def turned(self, x: Tensor) -> Tensor:
        by_position = x.transpose(1, 2)
        angles = rotary_angles(by_position.shape[1], D)[None, :, None]
        a, b = by_position.chunk(2, -1)
        turned = [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()]
        return torch.cat(turned, -1).transpose(1, 2)


class NormThenTurned(Rotary):
    """Qwen3's and nanochat's order."""

    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return super().place(F.rms_norm(q, (D,)), F.rms_norm(k, (D,)))


class TurnedThenNorm(Rotary):
    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().place(q, k)
        return F.normalize(q, dim=-1) * D**0.5, F.normalize(k, dim=-1) * D**0.5


class SomeLayersWithout(Rotary):
    """SmolLM3's: one layer in two has no positions."""

    def attend(self, block: Own, x: Tensor) -> Tensor:
        self.turns = block is self.blocks[0]
        return super().attend(block, x)

    def turned(self, x: Tensor) -> Tensor:
        return super().turned(x) if self.turns else x


def slopes() -> Tensor:
    return 2.0 ** (-8.0 * torch.arange(1, H + 1) / H)


class AlibiBuffer(Masked):
    """Cut to T, and used as it is."""

    def prepare(self) -> None:
        super().prepare()
        far = torch.arange(BS)[None] - torch.arange(BS)[:, None]
        bias = (far * slopes()[:, None, None]).masked_fill(~causal(BS), -torch.inf)
        self.register_buffer("alibi", bias[None])  # (1,H,BS,BS)

    def mask(self, T: int) -> Tensor:
        return self.get_buffer("alibi")[:, :, :T, :T]


class AlibiBufferByHand(ByHand, AlibiBuffer):
    def hide(self, scores: Tensor) -> Tensor:
        return scores + self.mask(scores.shape[-1])


class AlibiOfKeys(ByHand):
    """BLOOM's: the same for every query, up to what softmax takes away; and a mask beside it."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k) + slopes()[:, None, None] * torch.arange(q.shape[2])

    def embed(self, idx: Tensor) -> Tensor:
        return self.emb(idx)


class DistancesLookedUp(Masked):
    """T5's: a weight for each distance and head."""

    def prepare(self) -> None:
        super().prepare()
        self.distances = nn.Embedding(8, H)

    def mask(self, T: int) -> Tensor:
        far = (torch.arange(T)[:, None] - torch.arange(T)[None]).clamp(0, 7)
        bias = self.distances(far).permute(2, 0, 1)
        return bias.masked_fill(~causal(T), -torch.inf)[None]


class DistancesLookedUpByHand(ByHand, DistancesLookedUp):
    def hide(self, scores: Tensor) -> Tensor:
        return scores + self.mask(scores.shape[-1])


class KeysByDistance(ByHand):
    """Shaw's: a vector for each distance, which queries meet."""

    def prepare(self) -> None:
        super().prepare()
        self.distances = nn.Embedding(BS, D)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        T = q.shape[2]
        far = (torch.arange(T)[:, None] - torch.arange(T)[None]).clamp(0, BS - 1)
        return super().scores(q, k) + torch.einsum("bhtd,tsd->bhts", q, self.distances(far)) * D**-0.5
