"""nanochat's forward in float64 numpy, written from its description alone: shares no code with gptexport.

Position by position and head by head, as slow as it is plain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Facts:
    """What the training code of one generation computes and its weights do not tell."""

    rope_base: float
    qk_gain: float
    value_gain: float  # of the gate of the value embeddings
    windows: tuple[int, ...]  # FA3's left window N of each layer: N keys before one's own
    softcap: float


def nanochat_logits(
    weights: Mapping[str, Floats], ids: npt.NDArray[np.int64], facts: Facts, *, n_head: int, n_kv_head: int
) -> Floats:
    """Logits (B,T,V) of a state_dict with nanochat's names; V is the padded one."""
    return np.stack([_row(weights, row, facts, n_head, n_kv_head) for row in ids])


def _row(w: Mapping[str, Floats], ids: npt.NDArray[np.int64], facts: Facts, H: int, K: int) -> Floats:
    T = len(ids)
    n_layer = len({name.split(".")[2] for name in w if name.startswith("transformer.h.")})
    embedded = _norm(w["transformer.wte.weight"][ids])  # (T,C)
    x = embedded.copy()
    if "smear_gate.weight" in w:
        for t in range(1, T):
            opened = _sigmoid(w["smear_gate.weight"][0] @ embedded[t, :24])
            x[t] = embedded[t] + w["smear_lambda"][0] * opened * embedded[t - 1]
    start = x
    half_way = None
    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        if "resid_lambdas" in w:
            x = w["resid_lambdas"][layer] * x + w["x0_lambdas"][layer] * start
        h = _norm(x)
        q, k, v = (_linear(h, w[f"{block}.attn.c_{part}.weight"]) for part in "qkv")
        D = q.shape[1] // H
        q, k, v = q.reshape(T, H, D), k.reshape(T, K, D), v.reshape(T, K, D)
        if f"value_embeds.{layer}.weight" in w:
            gate = w[f"{block}.attn.ve_gate.weight"]  # (K, channels)
            opened = facts.value_gain * _sigmoid(_linear(h[:, : gate.shape[1]], gate))  # (T,K)
            v = v + opened[:, :, None] * w[f"value_embeds.{layer}.weight"][ids].reshape(T, K, D)
        q = facts.qk_gain * _norm(_turned(q, facts.rope_base))
        k = facts.qk_gain * _norm(_turned(k, facts.rope_base))
        y = _attend(q, k, v, facts.windows[layer]).reshape(T, H * D)
        x = x + _linear(y, w[f"{block}.attn.c_proj.weight"])
        wide = np.maximum(_linear(_norm(x), w[f"{block}.mlp.c_fc.weight"]), 0) ** 2
        x = x + _linear(wide, w[f"{block}.mlp.c_proj.weight"])
        if layer == n_layer // 2:
            half_way = x
    if "backout_lambda" in w:
        x = x - w["backout_lambda"][0] * half_way
    logits = _linear(_norm(x), w["lm_head.weight"])
    return facts.softcap * np.tanh(logits / facts.softcap)


def _attend(q: Floats, k: Floats, v: Floats, window: int) -> Floats:
    T, H, D = q.shape
    y = np.zeros_like(q)
    for head in range(H):
        shared = head // (H // k.shape[1])
        for t in range(T):
            first = max(0, t - window)
            scores = k[first : t + 1, shared] @ q[t, head] / np.sqrt(D)
            share = np.exp(scores - scores.max())
            y[t, head] = share / share.sum() @ v[first : t + 1, shared]
    return y


def _turned(x: Floats, base: float) -> Floats:
    """Pairs (j, j + D/2) turned by minus the angle; the angles are float32's, as in training."""
    T, _, D = x.shape
    frequencies = np.float32(1) / np.float32(base) ** (np.arange(0, D, 2, dtype=np.float32) / np.float32(D))
    angles = np.outer(np.arange(T, dtype=np.float32), frequencies)
    cos, sin = np.cos(angles).astype(np.float64)[:, None], np.sin(angles).astype(np.float64)[:, None]
    x1, x2 = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([x1 * cos + x2 * sin, -x1 * sin + x2 * cos], -1)


def _norm(x: Floats) -> Floats:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def _linear(x: Floats, weight: Floats) -> Floats:
    return np.einsum("...i,oi->...o", x, weight)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
