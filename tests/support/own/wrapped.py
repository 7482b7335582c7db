"""Modules as a training loop leaves them, models of Hugging Face by their classes, and what cannot be exported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.support.own.attention import DroppedWeights
from tests.support.own.layers import Sequential
from tests.support.own_modules import BS, C, H, Own, Tensor, V


def compiled() -> Any:
    return torch.compile(Own())


def data_parallel() -> nn.Module:
    return nn.DataParallel(Own())


def distributed() -> nn.Module:
    """Of one process, as a script that is run without torchrun makes it."""
    store = Path(tempfile.mkdtemp()) / "store"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(Own())


def compiled_and_distributed() -> Any:
    return torch.compile(distributed())


class Dropped(DroppedWeights, Sequential): ...


def in_train_mode() -> nn.Module:
    return Dropped().train()


def in_bfloat16() -> nn.Module:
    return Own().bfloat16()


def mixed() -> nn.Module:
    """Norms in float32 among weights of 16 bits, as autocast keeps them; activations as they come."""
    model = Own()
    for block in model.blocks:
        for name in ("qkv", "proj", "up", "down"):
            linear = block.get_submodule(name).bfloat16()
            linear.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype),))
            linear.register_forward_hook(lambda _module, _args, output: output.float())
    return model


class Autocast(Own):
    def forward(self, idx: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(idx).float()


def half_rotary() -> nn.Module:
    from tests.support.own.positions import HalvesFromBuffers

    return HalvesFromBuffers().bfloat16()


class LogitsOnly(nn.Module):
    """A model of Hugging Face, with logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.block_size = model, BS

    def forward(self, idx: Tensor) -> Tensor:
        return self.model(idx, use_cache=False).logits


def of_transformers(config: str, model: str, **sizes: Any) -> nn.Module:
    """One of transformers' own classes with random weights, the same every time."""
    import transformers

    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": C,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": H,
        "num_key_value_heads": 2,
        "head_dim": C // H,
        "max_position_embeddings": BS,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    made = getattr(transformers, config)(**{**usual, **sizes})
    found: nn.Module = getattr(transformers, model)(made)
    return LogitsOnly(found.eval())


# What cannot be exported, and is refused.


class Recurrent(Own):
    def prepare(self) -> None:
        self.lstm = nn.LSTM(C, C, batch_first=True)

    def body(self, idx: Tensor) -> Tensor:
        return self.lstm(self.emb(idx))[0]


class Scan(Own):
    """A Python loop over T."""

    def body(self, idx: Tensor) -> Tensor:
        x, state, states = self.embed(idx), torch.zeros(idx.shape[0], C), []
        for t in range(idx.shape[1]):
            state = 0.9 * state + x[:, t]
            states.append(state)
        return self.ln(torch.stack(states, 1))


class LastPositionOnly(Own):
    """nanoGPT's without targets."""

    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx)[:, [-1], :]


class AlwaysDrops(Own):
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return F.dropout(super().mlp(block, x), 0.2)


class NeedsAStart(nn.Module):
    """Meta's: forward(tokens, start_pos)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Own()

    def forward(self, idx: Tensor, start_pos: int) -> Tensor:
        logits: Tensor = self.model(idx)
        return logits


class NeedsAConfig(Own):
    def __init__(self, config: Any) -> None:
        super().__init__()


def raises() -> nn.Module:
    raise FileNotFoundError("out/ckpt.pt")


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(nn.Embedding(V, C), nn.Linear(C, V)))


class Pooled(Own):
    """A classifier's."""

    def forward(self, idx: Tensor) -> Tensor:
        return super().forward(idx).mean(1)
