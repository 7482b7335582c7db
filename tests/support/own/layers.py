"""MLPs, blocks, heads and what a forward returns. Each class overrides what `Own` does otherwise."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.support.own_modules import BS, C, Own, Tensor, V

E = 4  # experts, of which two are taken


class Gated(Own):
    """SwiGLU, in three linears without bias."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.w1, block.w3 = nn.Linear(C, 88, bias=False), nn.Linear(C, 88, bias=False)
        block.w2 = nn.Linear(88, C, bias=False)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.w2(F.silu(block.w1(x)) * block.w3(x))


class GatedInOne(Own):
    """GEGLU, gate and up in one linear."""

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        up, gate = block.up(x).chunk(2, -1)
        return F.linear(up * F.gelu(gate), block.down.weight[:, : 2 * C], block.down.bias)


class TanhGelu(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.down(F.gelu(block.up(x), approximate="tanh"))


class ErfGelu(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        u = block.up(x)
        return block.down(u * 0.5 * (1.0 + torch.erf(u / math.sqrt(2.0))))


class SquaredRelu(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.down(F.relu(block.up(x)).square())


class Sequential(Own):
    """As nn.Sequential, with dropout, in train mode."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.net = nn.Sequential(nn.Linear(C, 4 * C), nn.ReLU(), nn.Linear(4 * C, C), nn.Dropout(0.2))

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.net(x)


class _Routed(Own):
    def extend(self, block: Any) -> None:
        super().extend(block)
        block.gate = nn.Linear(C, E, bias=False)
        block.experts = nn.ModuleList([nn.Sequential(nn.Linear(C, 48), nn.SiLU(), nn.Linear(48, C)) for _ in range(E)])

    def routed(self, block: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.topk(F.softmax(block.gate(rows), dim=-1), 2, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return self.experts_of(block, x.reshape(-1, C)).reshape(x.shape)

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        raise NotImplementedError


class ExpertsInALoop(_Routed):
    """Mixtral's: each expert takes its tokens and adds to their sums."""

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        weights, chosen = self.routed(block, rows)
        out = torch.zeros_like(rows)
        mask = F.one_hot(chosen, num_classes=E).permute(2, 1, 0)
        for i, expert in enumerate(block.experts):
            which, row = torch.where(mask[i])
            out.index_add_(0, row, expert(rows[None, row].reshape(-1, C)) * weights[row, which, None])
        return out


class ExpertsByMask(_Routed):
    """Each expert takes the tokens of a mask and writes into them, as in nanoMoE."""

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        weights, chosen = self.routed(block, rows)
        out = torch.zeros_like(rows)
        for i, expert in enumerate(block.experts):
            taken = (chosen == i).any(-1)
            share = (weights * (chosen == i)).sum(-1, keepdim=True)
            out[taken] = out[taken] + expert(rows[taken]) * share[taken]
        return out


class ExpertsScattered(_Routed):
    """All experts, weighted by gates that are scattered."""

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        weights, chosen = self.routed(block, rows)
        shares = torch.zeros(rows.shape[0], E).scatter(1, chosen, weights)
        return sum((shares[:, i, None] * expert(rows) for i, expert in enumerate(block.experts)), torch.zeros(()))


class ExpertsHidden(_Routed):
    """All experts, those that were not chosen at minus infinity before the softmax."""

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        gates = block.gate(rows)
        top, chosen = gates.topk(2, dim=-1)
        shares = torch.full_like(gates, float("-inf")).scatter(-1, chosen, top).softmax(-1)
        return torch.stack([expert(rows) * shares[..., [i]] for i, expert in enumerate(block.experts)]).sum(0)


class ExpertsGathered(_Routed):
    """The chosen matrices are gathered for each token."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.w1, block.w2 = (nn.Parameter(torch.randn(E, *sizes) * 0.1) for sizes in ((C, 48), (48, C)))
        del block.experts

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        weights, chosen = self.routed(block, rows)
        hidden = F.silu(torch.einsum("nc,nkch->nkh", rows, block.w1[chosen]))
        return torch.einsum("nkh,nkhc,nk->nc", hidden, block.w2[chosen], weights)


class ExpertsOfOne(_Routed):
    """Switch's: the best expert alone, all computed, one-hot chosen."""

    def experts_of(self, block: Any, rows: Tensor) -> Tensor:
        shares = block.gate(rows).softmax(-1)
        best = F.one_hot(shares.argmax(-1), E) * shares
        return torch.einsum("ne,nec->nc", best, torch.stack([expert(rows) for expert in block.experts], 1))


class ExpertsAndOneForAll(ExpertsScattered):
    """DeepSeek's: beside the chosen ones, one that every token takes."""

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return super().mlp(block, x) + Own.mlp(self, block, x)


# Blocks.


class NormBehind(Own):
    """Post-norm, as in GPT-1."""

    def around(self, block: Any, x: Tensor) -> Tensor:
        x = block.norm_1(x + self.attend(block, x))
        return block.norm_2(x + self.mlp(block, x))


class Parallel(Own):
    """GPT-J's: one norm for both."""

    def around(self, block: Any, x: Tensor) -> Tensor:
        h = block.norm_1(x)
        return x + self.attend(block, h) + self.mlp(block, h)


class ParallelOfTwo(Own):
    """GPT-NeoX's: a norm for each."""

    def around(self, block: Any, x: Tensor) -> Tensor:
        return x + self.attend(block, block.norm_1(x)) + self.mlp(block, block.norm_2(x))


class Sandwich(Own):
    """Gemma 2's: norms in front and behind."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.norm_3, block.norm_4 = self.norm(C), self.norm(C)

    def around(self, block: Any, x: Tensor) -> Tensor:
        x = x + block.norm_3(self.attend(block, block.norm_1(x)))
        return x + block.norm_4(self.mlp(block, block.norm_2(x)))


class ScaledResiduals(Own):
    """A learned share of each branch."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.share = nn.Parameter(torch.randn(2, C))

    def around(self, block: Any, x: Tensor) -> Tensor:
        x = x + block.share[0] * self.attend(block, block.norm_1(x))
        return x + block.share[1] * self.mlp(block, block.norm_2(x))


class BackToTheStart(Own):
    """modded-nanogpt's: every block gets the embedding too."""

    def body(self, idx: Tensor) -> Tensor:
        first = x = F.rms_norm(self.embed(idx), (C,))
        for block in self.blocks:
            x = block(0.8 * x + 0.2 * first)
        return self.ln(x)


class EmbeddingsOfEachLayer(Own):
    """Gemma 3n's: a table of the tokens for each block."""

    def extend(self, block: Any) -> None:
        super().extend(block)
        block.table = nn.Embedding(V, C)

    def body(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x + block.get_submodule("table")(idx))
        return self.ln(x)


class NoBiasNorm(nn.Module):
    """nanoGPT's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(size) + 0.5), None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class NormWithoutBias(Own):
    norm = NoBiasNorm


class FunctionalNorm(nn.Module):
    """nanochat's: no gain."""

    def __init__(self, _size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),))


class NormWithoutGain(Own):
    norm = FunctionalNorm


# Heads.


class PaddedVocabulary(Own):
    """Rows for 64 ids, of which forward returns those that there are."""

    def prepare(self) -> None:
        super().prepare()
        self.head = nn.Linear(C, 64, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx)[..., :V]


class CappedLogits(Own):
    """nanochat's."""

    def forward(self, idx: Tensor) -> Tensor:
        return 15 * torch.tanh(super().forward(idx).float() / 15)


class ScaledLogits(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx) * 0.25


class DeepHead(Own):
    """A layer in front of the head, as in BERT."""

    def prepare(self) -> None:
        super().prepare()
        self.dense, self.norm_of_head = nn.Linear(C, C), nn.LayerNorm(C)

    def body(self, idx: Tensor) -> Tensor:
        return self.norm_of_head(F.gelu(self.dense(super().body(idx))))


class LogProbs(Own):
    def forward(self, idx: Tensor) -> Tensor:
        return F.log_softmax(super().forward(idx), dim=-1)


class Tied(Own):
    """By the parameter."""

    def prepare(self) -> None:
        super().prepare()
        self.head.weight = self.emb.weight


# What forward takes and returns.


class ReturnsATuple(Own):
    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        logits = super().forward(idx)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


class ReturnsADict(Own):
    def forward(self, idx: Tensor) -> Any:
        x = self.body(idx)
        return {"hidden": x, "logits": self.head(x)}


class ReturnsAnObject(Own):
    def forward(self, idx: Tensor) -> Any:
        return SimpleNamespace(loss=None, logits=super().forward(idx))


class ChecksAndCrops(Own):
    def forward(self, idx: Tensor) -> Tensor:
        assert idx.size(1) <= BS, f"cannot forward {idx.size(1)} tokens"
        return super().forward(idx)


class TakesAStart(Own):
    """start_pos with a default, for the cache of its own that it has."""

    def forward(self, idx: Tensor, start_pos: int = 0) -> Tensor:
        self.start = start_pos
        return super().forward(idx)

    def embed(self, idx: Tensor) -> Tensor:
        at = torch.arange(self.start, self.start + idx.shape[1])
        return self.emb(idx) + self.pos(at)
