"""GPT-2, as the "Let's reproduce GPT-2" lecture builds it: its config, its module, and what is particular about it.

Knows nothing of checkpoints, export or targets: what a target needs is put into the graph at export.
Parameter names are the lecture's (and nanoGPT's): `transformer.wte.weight`, `transformer.h.0.attn.c_attn.weight`, ...
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.architectures.base import Architecture, Smoothing, check_sizes
from gptexport.assumptions import GELU


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT-2 and the choices that change its result.

    Raises:
        ValueError: a size is not a positive integer, n_head does not divide n_embd, or the GELU has no such kind.
    """

    block_size: int = 1024  # longest sequence T, rows of wpe
    vocab_size: int = 50257  # V, rows of wte and of the head
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C, the width of the residual stream
    n_inner: int | None = None  # width of the MLP; None means 4 * n_embd
    bias: bool = True  # biases in the linears and layer norms
    gelu: str = "tanh"  # of GELU.values; the weights do not tell: see each checkpoint format
    tied: bool = True  # lm_head shares wte's weight
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # scores divided by sqrt(head size)
    scale_attn_by_inverse_layer_idx: bool = False  # and by layer index + 1 (Mistral's GPT-2s)

    def __post_init__(self) -> None:
        check_sizes(self, "block_size", "vocab_size", "n_layer", "n_head", "n_embd")
        if self.n_inner is not None:
            check_sizes(self, "n_inner")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        GELU.check(self.gelu)

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    @property
    def parameters(self) -> int:
        """How many numbers the model holds, a tied head once."""
        C, M, V = self.n_embd, self.mlp_width, self.vocab_size
        weights = self.n_layer * (4 * C * C + 2 * C * M + 2 * C) + C  # and the gains of the layer norms
        biases = (self.n_layer * (3 * C + C + M + C + 2 * C) + C) * self.bias
        return (V + self.block_size) * C + weights + biases + V * C * (not self.tied)

    def attn_scale(self, layer: int) -> float:
        """What attention scores of block `layer` (0-based) are multiplied by before the softmax."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CausalSelfAttention(nn.Module):
    """Every position attends to itself and to those before it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.scale = config.attn_scale(layer)
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v of all heads
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head_size)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return self.c_proj(y)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.c_proj = nn.Linear(config.mlp_width, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token ids (B,T) int64, 1 <= T <= block_size, to logits (B,T,V) in the parameters' dtype."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        _, T = idx.shape
        pos = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B,T,C) + (T,C), one row per position
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))  # (B,T,V)


def forward_flops(config: GPTConfig, B: int, T: int) -> float:
    """Multiplications and additions of one forward to all logits: the matmuls, and the causal half of attention."""
    C, V = config.n_embd, config.vocab_size
    per_token = config.n_layer * (4 * C * C + 2 * C * config.mlp_width) + C * V
    attention = config.n_layer * 2 * C * T * (T + 1) / 2  # scores and their product with v
    return 2.0 * B * (T * per_token + attention)


def _smoothing(model: nn.Module) -> Smoothing:
    """The linears that read a norm and nothing else."""
    pairs: Smoothing = []
    for block in model.transformer.h:
        pairs += [(block.ln_1, [block.attn.c_attn]), (block.ln_2, [block.mlp.c_fc])]
    return pairs


ARCHITECTURE = Architecture(
    name="gpt2",
    title="GPT-2",
    config=GPTConfig,
    model=GPT,
    assumed=(GELU,),
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    cut_rows={
        "transformer.wte.weight": "vocab_size",
        "lm_head.weight": "vocab_size",
        "transformer.wpe.weight": "block_size",
    },
    block="transformer.h.{layer}.",
    smoothing=_smoothing,
    flops=forward_flops,
)
