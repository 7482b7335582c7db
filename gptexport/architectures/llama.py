"""Llama, and what is built like it: Mistral, Qwen2, Qwen3, SmolLM, minimind.

RMSNorm, rotary positions, grouped queries, a gated MLP. Parameter names are those of transformers, as in most files of
such a model: `model.embed_tokens.weight`, `model.layers.0.self_attn.q_proj.weight`, ...
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.architectures.attention import causal_attention, check_windows, keys_seen, window_of
from gptexport.architectures.base import Architecture, Smoothing, check_positive, check_sizes
from gptexport.architectures.rotary import Scaling, check_table, rotary_tables, rotate, scaling_of, scaling_to_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The shape of a Llama and the choices that change its result.

    Raises:
        ValueError: a size is not a positive integer, two of them contradict one another, or a number is out of range.
    """

    block_size: int = 2048  # longest sequence T, rows of the rotary tables
    vocab_size: int = 49152  # V, rows of the embedding and of the head
    n_layer: int = 30
    n_head: int = 9  # of the queries
    n_kv_head: int = 3  # of keys and values; n_head / n_kv_head neighbouring queries share one
    n_embd: int = 576  # C, the width of the residual stream
    head_size: int = 64  # D; n_head * head_size need not be n_embd
    n_inner: int = 1536  # width of the MLP
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key over its head, before it is turned
    tied: bool = True  # lm_head shares embed_tokens' weight
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    rope_scaling: Scaling | None = None
    windows: tuple[int | None, ...] = ()  # how many keys a query sees, its own included; repeated over the blocks

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, Mapping):  # as to_dict writes it
            object.__setattr__(self, "rope_scaling", scaling_of(self.rope_scaling))
        object.__setattr__(self, "windows", tuple(self.windows))
        check_sizes(
            self, "block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_size", "n_inner"
        )
        check_windows(self.windows)
        check_positive(self, "norm_eps", "rope_base")
        check_table(self.block_size, self.rope_base, self.rope_scaling)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.head_size % 2:
            raise ValueError(f"head_size {self.head_size} is odd; rotary positions turn pairs")

    @property
    def parameters(self) -> int:
        """How many numbers the model holds, a tied head once."""
        C, M, V = self.n_embd, self.n_inner, self.vocab_size
        Q, K = self.n_head * self.head_size, self.n_kv_head * self.head_size
        biases = self.qkv_bias * (Q + 2 * K) + self.out_bias * C + self.mlp_bias * (2 * M + C)
        layer = C * (Q + 2 * K) + Q * C + 3 * C * M + 2 * C + 2 * self.head_size * self.qk_norm + biases
        return V * C * (2 - self.tied) + self.n_layer * layer + C

    def window(self, layer: int) -> int | None:
        """How many keys a query of block `layer` (0-based) sees; None: always all up to its own."""
        return window_of(self.windows, layer, self.block_size)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rope_scaling": scaling_to_dict(self.rope_scaling), "windows": list(self.windows)}


class Attention(nn.Module):
    """Every position attends to itself and to those before it, within the layer's window."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        C, D = config.n_embd, config.head_size
        self.n_head, self.n_kv_head, self.head_size = config.n_head, config.n_kv_head, D
        self.window = config.window(layer)
        self.q_proj = nn.Linear(C, config.n_head * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, config.n_kv_head * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_head * D, C, bias=config.out_bias)
        self.q_norm = nn.RMSNorm(D, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(D, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.n_head, self.head_size).transpose(1, 2)  # (B,n_head,T,D)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.head_size).transpose(1, 2)  # (B,n_kv_head,T,D)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.head_size).transpose(1, 2)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        y = causal_attention(q, k, v, window=self.window)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.n_head * self.head_size))  # heads side by side again


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids (B,T) int64, 1 <= T <= block_size, to logits (B,T,V) in the parameters' dtype."""

    cos: torch.Tensor  # (block_size, D/2), in no checkpoint
    sin: torch.Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.n_embd),
                "layers": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "norm": nn.RMSNorm(config.n_embd, eps=config.norm_eps),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        for name, table in rotary_buffers(config).items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        _, T = idx.shape
        pos = torch.arange(T, device=idx.device)[None]  # (1,T)
        cos, sin = F.embedding(pos, self.cos)[:, None], F.embedding(pos, self.sin)[:, None]  # (1,1,T,D/2)
        x = self.model.embed_tokens(idx)  # (B,T,C)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.model.norm(x))  # (B,T,V)


def rotary_buffers(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """cos and sin (block_size, D/2)."""
    cos, sin = rotary_tables(config.block_size, config.head_size, config.rope_base, config.rope_scaling)
    return {"cos": cos, "sin": sin}


def forward_flops(config: LlamaConfig, B: int, T: int) -> float:
    """Multiplications and additions of one forward to all logits: the matmuls, and attention to the keys it sees."""
    C, Q, K = config.n_embd, config.n_head * config.head_size, config.n_kv_head * config.head_size
    layer = 2 * C * Q + 2 * C * K + 3 * C * config.n_inner
    seen = sum(keys_seen(T, config.window(i)) for i in range(config.n_layer))
    return 2.0 * B * (T * (config.n_layer * layer + C * config.vocab_size) + 2 * Q * seen)


def _smoothing(model: nn.Module) -> Smoothing:
    """The linears that read a norm and nothing else, and those that read the product of gate and up."""
    assert isinstance(model, Llama)
    pairs: Smoothing = []
    for layer in model.model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        pairs += [(layer.input_layernorm, [attn.q_proj, attn.k_proj, attn.v_proj])]
        pairs += [(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]), (mlp.up_proj, [mlp.down_proj])]
    return pairs


ARCHITECTURE = Architecture(
    name="llama",
    title="Llama",
    config=LlamaConfig,
    model=Llama,
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    cut_rows={"model.embed_tokens.weight": "vocab_size", "lm_head.weight": "vocab_size"},
    block="model.layers.{layer}.",
    buffers=rotary_buffers,
    smoothing=_smoothing,
    flops=forward_flops,
)
