"""nanoGPT's forward written out in float64, straight from a state_dict: shares no code with gptexport."""

import math
from collections.abc import Mapping

import torch


def nanogpt_logits(
    weights: Mapping[str, torch.Tensor], idx: torch.Tensor, *, n_layer: int, n_head: int, gelu: str = "erf"
) -> torch.Tensor:
    """Logits (B,T,V) of a state_dict with nanoGPT's names."""
    w = {name: weight.to(torch.float64) for name, weight in weights.items()}
    T = idx.shape[1]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return y * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(1))

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.einsum("bti,oi->bto", x, w[f"{name}.weight"]) + w.get(f"{name}.bias", torch.zeros(1))

    def act(x: torch.Tensor) -> torch.Tensor:
        if gelu == "erf":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:T]
    C = x.shape[-1]
    size = C // n_head
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        heads = []
        for head in range(n_head):
            q, k, v = (qkv[..., part * C + head * size : part * C + (head + 1) * size] for part in range(3))
            scores = torch.einsum("bid,bjd->bij", q, k) / math.sqrt(size)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
        x = x + linear(torch.cat(heads, -1), f"{block}.attn.c_proj")
        x = x + linear(act(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return torch.einsum("btc,vc->btv", norm(x, "transformer.ln_f"), w["lm_head.weight"])


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of what was expected."""
    difference = (actual.to(torch.float64) - expected.to(torch.float64)).square().mean().sqrt()
    return float(difference / expected.to(torch.float64).square().mean().sqrt())
