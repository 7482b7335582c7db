"""GPT-NeoX, which Pythia is: GPT-2 with rotary positions for a part of every head, and both halves of a block at once.

Parameter names are GPT-2's as in gpt2.py, without `wpe`. q, k and v of all heads are one projection, one after another.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.architectures.attention import causal_attention
from gptexport.architectures.base import Architecture, Smoothing, check_positive, check_sizes
from gptexport.architectures.rotary import (
    Scaling,
    check_table,
    rotary_tables,
    rotate,
    scaling_of,
    scaling_to_dict,
)
from gptexport.assumptions import GELU


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxConfig:
    """The shape of a GPT-NeoX and the choices that change its result.

    Raises:
        ValueError: a size is not a positive integer, two of them contradict one another, or a number is out of range.
    """

    block_size: int = 2048  # longest sequence T, rows of the rotary tables
    vocab_size: int = 50304  # V, rows of wte and of the head
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C, the width of the residual stream
    n_inner: int = 3072  # width of the MLP
    attn_bias: bool = True  # in the attention's linears
    mlp_bias: bool = True
    rotary_size: int = 16  # how many numbers of a head turn, the first ones
    rope_base: float = 10_000.0
    rope_scaling: Scaling | None = None
    parallel: bool = True  # attention and MLP both read the block's input, and not one the other's output
    gelu: str = "erf"  # of GELU.values
    tied: bool = False  # lm_head shares wte's weight
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, Mapping):  # as to_dict writes it
            object.__setattr__(self, "rope_scaling", scaling_of(self.rope_scaling))
        check_sizes(self, "block_size", "vocab_size", "n_layer", "n_head", "n_embd", "n_inner", "rotary_size")
        check_positive(self, "norm_eps", "rope_base")
        check_table(self.block_size, self.rope_base, self.rope_scaling)
        GELU.check(self.gelu)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.rotary_size % 2 or self.rotary_size > self.head_size:
            raise ValueError(f"rotary_size is {self.rotary_size}; expected an even number up to {self.head_size}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def parameters(self) -> int:
        """How many numbers the model holds, a tied head once."""
        C, M, V = self.n_embd, self.n_inner, self.vocab_size
        layer = 4 * C * C + 2 * C * M + 4 * C + self.attn_bias * 4 * C + self.mlp_bias * (M + C)
        return V * C * (2 - self.tied) + self.n_layer * layer + 2 * C

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rope_scaling": scaling_to_dict(self.rope_scaling)}


class CausalSelfAttention(nn.Module):
    """Every position attends to itself and to those before it."""

    def __init__(self, config: NeoxConfig) -> None:
        super().__init__()
        self.n_head, self.rotary_size = config.n_head, config.rotary_size
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.attn_bias)  # q, k, v of all heads
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.attn_bias)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = self._turned(q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2), cos, sin)  # (B,n_head,T,D)
        k = self._turned(k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2), cos, sin)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = causal_attention(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again

    def _turned(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The first numbers of every head turned, the others as they are."""
        return torch.cat((rotate(x[..., : self.rotary_size], cos, sin), x[..., self.rotary_size :]), dim=-1)


class MLP(nn.Module):
    def __init__(self, config: NeoxConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.c_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: NeoxConfig) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        y = x + self.attn(self.ln_1(x), cos, sin)
        return y + self.mlp(self.ln_2(x if self.parallel else y))


class GPTNeoX(nn.Module):
    """Token ids (B,T) int64, 1 <= T <= block_size, to logits (B,T,V) in the parameters' dtype."""

    cos: torch.Tensor  # (block_size, rotary_size/2), in no checkpoint
    sin: torch.Tensor

    def __init__(self, config: NeoxConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, eps=config.norm_eps),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight
        for name, table in rotary_buffers(config).items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        _, T = idx.shape
        pos = torch.arange(T, device=idx.device)[None]  # (1,T)
        cos, sin = F.embedding(pos, self.cos)[:, None], F.embedding(pos, self.sin)[:, None]  # (1,1,T,rotary_size/2)
        x = self.transformer.wte(idx)  # (B,T,C)
        for block in self.transformer.h:
            x = block(x, cos, sin)
        return self.lm_head(self.transformer.ln_f(x))  # (B,T,V)


def rotary_buffers(config: NeoxConfig) -> dict[str, torch.Tensor]:
    """cos and sin (block_size, rotary_size/2)."""
    cos, sin = rotary_tables(config.block_size, config.rotary_size, config.rope_base, config.rope_scaling)
    return {"cos": cos, "sin": sin}


def forward_flops(config: NeoxConfig, B: int, T: int) -> float:
    """Multiplications and additions of one forward to all logits: the matmuls, and the causal half of attention."""
    C = config.n_embd
    per_token = config.n_layer * (4 * C * C + 2 * C * config.n_inner) + C * config.vocab_size
    attention = config.n_layer * 2 * C * T * (T + 1) / 2
    return 2.0 * B * (T * per_token + attention)


def _smoothing(model: nn.Module) -> Smoothing:
    """The linears that read a norm and nothing else."""
    assert isinstance(model, GPTNeoX)
    pairs: Smoothing = []
    for block in model.transformer.h:
        pairs += [(block.ln_1, [block.attn.c_attn]), (block.ln_2, [block.mlp.c_fc])]
    return pairs


ARCHITECTURE = Architecture(
    name="neox",
    title="GPT-NeoX",
    config=NeoxConfig,
    model=GPTNeoX,
    assumed=(GELU,),
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    cut_rows={"transformer.wte.weight": "vocab_size", "lm_head.weight": "vocab_size"},
    block="transformer.h.{layer}.",
    buffers=rotary_buffers,
    smoothing=_smoothing,
    flops=forward_flops,
)
