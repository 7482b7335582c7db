"""SmoothQuant (arXiv 2211.10438): outliers of activations moved into the weights that read them, before quantizing."""

from __future__ import annotations

import torch
import torch.nn as nn

from gptexport.architectures import Architecture
from gptexport.architectures.base import Smoothing
from gptexport.recipe import Limits

SMOOTHING = 0.5  # alpha of SmoothQuant: how much of an outlier moves from activation to weight


def smooth_norms(model: nn.Module, architecture: Architecture, limits: Limits) -> list[str]:
    """Smooth the activations, where the architecture says which linears read a norm and nothing else.

    Returns: what could not be done, and why.
    """
    if architecture.smoothing is None:
        return [
            f"activations were not smoothed: which linears read a norm is not known of {architecture.title}, so "
            "outliers in its activations cost quantized weights more precision"
        ]
    ids = calibration_ids(block_size=limits.block_size, vocab_size=limits.vocab_size)
    smooth(model, architecture.smoothing(model), ids)
    return []


def calibration_ids(*, block_size: int, vocab_size: int) -> torch.Tensor:
    """(B,T) ids to see activations on. Random ones do: outliers sit in channels, whatever the text is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (4, min(block_size, 256)), generator=generator)


@torch.no_grad()
def smooth(model: nn.Module, pairs: Smoothing, ids: torch.Tensor) -> None:
    """Even out the inputs of linears, in place; the function stays what it was (SmoothQuant).

    Args:
        pairs: what scales them, a norm or a linear, and all the linears that read it.
        ids: (B,T) to see the activations' range on.
    """
    peaks: dict[nn.Module, torch.Tensor] = {}

    def see(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        peaks[linear] = inputs[0].abs().amax(dim=(0, 1))

    hooks = [linears[0].register_forward_pre_hook(see) for _, linears in pairs]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    for scaled, linears in pairs:
        weight_peak = torch.stack([linear.weight.abs().amax(dim=0) for linear in linears]).amax(dim=0).clamp(min=1e-5)
        scale = peaks[linears[0]].clamp(min=1e-5) ** SMOOTHING / weight_peak ** (1 - SMOOTHING)
        for name in ("weight", "bias"):
            value = getattr(scaled, name, None)
            if value is not None:
                value.data = value / scale.reshape(-1, *[1] * (value.dim() - 1))  # a linear's weight is (N,K)
        for linear in linears:
            linear.weight.data = linear.weight * scale
