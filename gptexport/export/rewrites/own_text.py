"""Text that a model writes itself, and what rounded weights lose on it: nobody has to bring any."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.export.rewrites.rounding import Rounded

REWRITINGS = 8  # of random ids, each from the logits of the one before; 16 were no better on the demo's models


@torch.no_grad()
def own_text(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(B,T) ids that are somewhat like text of the model's own: each drawn from its logits behind the drafts before it.

    Written all at once, again and again: a forward for each draft, not for each token.
    """
    generator = torch.Generator().manual_seed(0)
    drafts = []
    for row in ids.split(1):  # logits are large
        draft = row.clone()
        for _ in range(REWRITINGS):
            probabilities = torch.softmax(model(draft)[0].float(), dim=-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator).flatten()
            draft[0, 1:] = drawn[:-1]
        drafts.append(draft)
    return torch.cat(drafts)


@torch.no_grad()
def divergence(model: nn.Module, rounded: Mapping[int, Rounded], ids: torch.Tensor) -> float:
    """The mean KL divergence, in nats, of the model with rounded weights from the model as it is, which it stays.

    Args:
        rounded: weights of linears and embeddings, by where the model's own lie in memory.
        ids: (B,T).
    """

    def instead(module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, nn.Linear | nn.Embedding)
        weight = rounded[module.weight.data_ptr()].widened()[:, : module.weight.shape[1]]
        if isinstance(module, nn.Linear):
            return F.linear(inputs[0], weight, module.bias)
        return F.embedding(inputs[0], weight)

    replaced = [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) or type(module) is nn.Embedding) and module.weight.data_ptr() in rounded
    ]
    losses = []
    for row in ids.split(1):
        expected = model(row)
        hooks = [module.register_forward_hook(instead) for module in replaced]
        try:
            found = model(row)
        finally:
            for hook in hooks:
                hook.remove()
        losses.append(mean_kl(expected, found))
    return sum(losses) / len(losses)


def mean_kl(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The mean KL divergence, in nats, of what logits (…,V) predict; of a token that cannot come, minus infinity, 0."""
    p, q = (torch.log_softmax(logits.double(), dim=-1) for logits in (expected, found))
    return float(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1).mean())
