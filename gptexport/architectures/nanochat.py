"""nanochat's GPT, of every generation that left checkpoints behind.

Parameter names are its own: `transformer.wte.weight`, `transformer.h.0.attn.c_q.weight`, `value_embeds.1.weight`, ...
Norms have no parameters, linears no biases. What came and went from one generation to the next is in the config.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.architectures.attention import causal_attention, check_windows, keys_seen, window_of
from gptexport.architectures.base import Architecture, check_positive, check_sizes
from gptexport.architectures.rotary import check_table, rotary_tables, rotate
from gptexport.assumptions import SOFTCAP

NORM_EPS = 2.0**-23  # finfo(float32).eps, what F.rms_norm adds when it is not told, also to bfloat16
SMEAR_CHANNELS = 24  # how much of a token its smear gate reads


@dataclass(frozen=True, slots=True, kw_only=True)
class NanochatConfig:
    """The shape of a nanochat model and the choices that change its result.

    Raises:
        ValueError: a size is not a positive integer, two of them contradict one another, or a number is out of range.
    """

    block_size: int = 2048  # longest sequence T, nanochat's sequence_len
    vocab_size: int = 32768  # V; nanochat pads its tables to a multiple of 64, which the reader cuts off again
    n_layer: int = 20
    n_head: int = 10  # of the queries
    n_kv_head: int = 10  # of keys and values; n_head / n_kv_head neighbouring queries share one
    n_embd: int = 1280  # C, the width of the residual stream
    windows: tuple[int | None, ...] = ()  # how many keys a query sees, its own included; repeated over the blocks,
    # but for the last, which sees all
    rope_base: float = 100_000.0
    qk_gain: float = 1.2  # queries and keys are multiplied by it, which sharpens attention
    lambdas: bool = True  # every block reads the stream and the embedding, each by a weight of its own
    value_channels: int = 12  # how much of a token the gate of its value embedding reads; 0: no value embeddings
    value_gain: float = 3.0  # of that gate
    smear: bool = True  # a token takes some of the embedding of the one before
    backout: bool = True  # before the head, some of the stream half-way up is subtracted
    softcap: float = 15.0  # logits are squashed to -softcap ... softcap

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        check_sizes(self, "block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
        check_windows(self.windows)
        check_positive(self, "rope_base", "qk_gain", "value_gain", "softcap")
        check_table(self.block_size, self.rope_base)
        if not isinstance(self.value_channels, int) or not 0 <= self.value_channels <= self.n_embd:
            raise ValueError(f"value_channels is {self.value_channels!r}; expected 0 to n_embd {self.n_embd}")
        if self.smear and self.n_embd < SMEAR_CHANNELS:
            raise ValueError(f"n_embd is {self.n_embd}; the smear gate reads {SMEAR_CHANNELS}")
        if self.n_embd % self.n_head or self.n_embd // self.n_head % 2:
            raise ValueError(f"n_embd {self.n_embd} over n_head {self.n_head} heads is not an even number")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")

    @property
    def tied(self) -> bool:
        return False

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def attn_scale(self) -> float:
        """What attention scores are multiplied by before the softmax, with the gain of queries and that of keys."""
        return self.qk_gain**2 * self.head_size**-0.5

    @property
    def parameters(self) -> int:
        """How many numbers the model holds."""
        C, V, L = self.n_embd, self.vocab_size, self.n_layer
        K = self.n_kv_head * self.head_size
        with_values = sum(self.has_values(layer) for layer in range(L))
        layers = L * (2 * C * C + 2 * C * K + 8 * C * C) + with_values * (V * K + self.n_kv_head * self.value_channels)
        return 2 * V * C + layers + 2 * L * self.lambdas + (SMEAR_CHANNELS + 1) * self.smear + self.backout

    def has_values(self, layer: int) -> bool:
        """Whether block `layer` (0-based) has a value embedding: every other one, the last among them."""
        return self.value_channels > 0 and layer % 2 == (self.n_layer - 1) % 2

    def window(self, layer: int) -> int | None:
        """How many keys a query of block `layer` (0-based) sees; None: always all up to its own."""
        return None if layer == self.n_layer - 1 else window_of(self.windows, layer, self.block_size)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"windows": list(self.windows)}


def norm(x: torch.Tensor) -> torch.Tensor:
    """x over the root of its mean square, along the last axis."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


class CausalSelfAttention(nn.Module):
    """Every position attends to itself and to those before it, within the layer's window."""

    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        C, D = config.n_embd, config.head_size
        self.n_head, self.n_kv_head, self.head_size = config.n_head, config.n_kv_head, D
        self.window, self.scale = config.window(layer), config.attn_scale
        self.value_channels, self.value_gain = config.value_channels, config.value_gain
        self.c_q = nn.Linear(C, config.n_head * D, bias=False)
        self.c_k = nn.Linear(C, config.n_kv_head * D, bias=False)
        self.c_v = nn.Linear(C, config.n_kv_head * D, bias=False)
        self.c_proj = nn.Linear(C, C, bias=False)
        if config.has_values(layer):
            self.ve_gate = nn.Linear(config.value_channels, config.n_kv_head, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, values: torch.Tensor | None
    ) -> torch.Tensor:
        B, T, C = x.shape
        q = self.c_q(x).view(B, T, self.n_head, self.head_size)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_size)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_size)
        if values is not None:
            gate = self.value_gain * torch.sigmoid(self.ve_gate(x[..., : self.value_channels]))  # (B,T,n_kv_head)
            v = v + gate[..., None] * values.view(B, T, self.n_kv_head, self.head_size)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B,heads,T,D)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = causal_attention(q, k, v, window=self.window, scale=self.scale)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again


class MLP(nn.Module):
    def __init__(self, config: NanochatConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, values: torch.Tensor | None
    ) -> torch.Tensor:
        x = x + self.attn(norm(x), cos, sin, values)
        return x + self.mlp(norm(x))


class Nanochat(nn.Module):
    """Token ids (B,T) int64, 1 <= T <= block_size, to logits (B,T,V) in the parameters' dtype."""

    cos: torch.Tensor  # (block_size, D/2), in no checkpoint
    sin: torch.Tensor

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__()
        self.config = config
        C, V, K = config.n_embd, config.vocab_size, config.n_kv_head * config.head_size
        layers = range(config.n_layer)
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(V, C), "h": nn.ModuleList(Block(config, layer) for layer in layers)}
        )
        self.value_embeds = nn.ModuleDict(
            {str(layer): nn.Embedding(V, K) for layer in layers if config.has_values(layer)}
        )
        self.lm_head = nn.Linear(C, V, bias=False)
        if config.lambdas:
            self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
            self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        for name, table in rotary_buffers(config).items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        _, T = idx.shape
        pos = torch.arange(T, device=idx.device)[None]  # (1,T)
        cos, sin = F.embedding(pos, self.cos)[:, None], F.embedding(pos, self.sin)[:, None]  # (1,1,T,D/2)
        x = norm(self.transformer.wte(idx))  # (B,T,C)
        if self.config.smear:
            gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))  # (B,T,1)
            x = x + gate * F.pad(x, (0, 0, 1, -1))  # the token before; none before the first
        x0 = x
        for layer, block in enumerate(self.transformer.h):
            if self.config.lambdas:
                x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            values = self.value_embeds[str(layer)](idx) if self.config.has_values(layer) else None
            x = block(x, cos, sin, values)
            if layer == self.config.n_layer // 2:
                half_way = x
        if self.config.backout:
            x = x - self.backout_lambda * half_way
        logits = self.lm_head(norm(x))  # (B,T,V)
        return self.config.softcap * torch.tanh(logits / self.config.softcap)


def rotary_buffers(config: NanochatConfig) -> dict[str, torch.Tensor]:
    """cos and sin (block_size, D/2); nanochat turns the other way round than Llama, hence the minus."""
    cos, sin = rotary_tables(config.block_size, config.head_size, config.rope_base)
    return {"cos": cos, "sin": -sin}


def forward_flops(config: NanochatConfig, B: int, T: int) -> float:
    """Multiplications and additions of one forward to all logits: the matmuls, and attention to the keys it sees."""
    C, K = config.n_embd, config.n_kv_head * config.head_size
    layer = 2 * C * C + 2 * C * K + 8 * C * C
    seen = sum(keys_seen(T, config.window(i)) for i in range(config.n_layer))
    return 2.0 * B * (T * (config.n_layer * layer + C * config.vocab_size) + 2 * C * seen)


ARCHITECTURE = Architecture(
    name="nanochat",
    title="nanochat",
    config=NanochatConfig,
    model=Nanochat,
    assumed=(SOFTCAP,),
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    cut_rows={
        "transformer.wte.weight": "vocab_size",
        "lm_head.weight": "vocab_size",
        "value_embeds.{layer}.weight": "vocab_size",
    },
    block="transformer.h.{layer}.",
    buffers=rotary_buffers,
    flops=forward_flops,
)
