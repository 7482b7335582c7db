"""The float64 reference: exact, bounded in memory, whatever a forward does; and it leaves the model as it was."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx

from gptexport.checkpoints import load_checkpoint
from gptexport.parity.measure import float64
from gptexport.parity.measure.float64 import Perturbed, in_float64
from gptexport.parity.measure.reference import run, run_reference

V, C, H = 61, 32, 4
IDS = np.random.default_rng(0).integers(0, V, (3, 17))
OWN_IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


def test_it_is_the_model_in_float64(checkpoint: Path) -> None:
    model = load_checkpoint(str(checkpoint)).model
    expected = run(copy.deepcopy(model).to(torch.float64), OWN_IDS)
    assert expected.dtype == np.float64
    found = run_reference(model, OWN_IDS)
    assert found is not None and np.array_equal(found, expected)


def test_one_weight_is_wide_at_a_time(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a bias beside its weight."""
    model = load_checkpoint(str(checkpoint)).model
    widen, alive, most = float64._widened, weakref.WeakSet[Any](), 0

    def counted(x: Any) -> Any:
        nonlocal most
        made = widen(x)
        if isinstance(x, torch.Tensor) and made is not x and any(x.data_ptr() == p.data_ptr() for p in parameters):
            alive.add(made)
        most = max(most, len(alive))
        return made

    parameters = list(model.parameters())
    monkeypatch.setattr(float64, "_widened", counted)
    run_reference(model, OWN_IDS)
    assert most == 2


def test_the_model_is_never_changed(checkpoint: Path) -> None:
    model = load_checkpoint(str(checkpoint)).model

    def check(_module: nn.Module, _args: object, _output: object) -> None:
        assert all(p.dtype == torch.float32 for p in model.parameters())

    hooks = [m.register_forward_hook(check) for m in model.modules()]
    run_reference(model, OWN_IDS)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("error", [IndexError, KeyboardInterrupt])
def test_an_error_inside_ends_the_mode(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    model = load_checkpoint(str(checkpoint)).model

    def fail(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(model.get_submodule("transformer.h.1.mlp.c_fc"), "forward", fail)
    with pytest.raises(error), in_float64(model):
        run(model, OWN_IDS)
    assert (torch.zeros(1) + model.get_parameter("transformer.ln_f.weight")).dtype == torch.float32


class Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


gated: Callable[[torch.Tensor], torch.Tensor] = Gated.apply


class Model(nn.Module):
    """A small GPT whose attention is given; its modules are there for it to use."""

    def __init__(self, attend: Callable[[Model, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.pos = nn.Embedding(V, C), nn.Embedding(32, C)
        self.qkv, self.proj, self.ln, self.head = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, V)
        self.mha = nn.MultiheadAttention(C, H, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(C, H, 64, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(C, C))
        self.compiled = torch.compile(nn.Linear(C, C))
        self.register_buffer("table", torch.randn(V, C))
        self.register_buffer("cache", torch.zeros(8, 32, C))
        self.attend = attend
        self.eval().requires_grad_(False)

    def heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        B, T, _ = x.shape
        return [y.view(B, T, H, C // H).transpose(1, 2) for y in self.qkv(x).split(C, -1)]

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.emb(idx) + self.pos(torch.arange(idx.shape[1]))
        logits: torch.Tensor = self.head(self.ln(x + self.attend(self, x)))
        return logits


def sdpa(model: Model, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    q, k, v = model.heads(x)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return y.transpose(1, 2).flatten(2)


def rotated(model: Model, x: torch.Tensor) -> torch.Tensor:
    angles = torch.outer(torch.arange(x.shape[1]).float(), 10000.0 ** (-torch.arange(0, C, 2).float() / C))
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def written(model: Model, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(*x.shape)
    out[:, :, : C // 2] = x[..., C // 2 :]
    out.index_add_(2, torch.arange(C // 2), x[..., : C // 2])
    return out


def padded(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.encoder(x, src_key_padding_mask=x[..., 0] > 2)


FORWARDS: dict[str, Callable[[Model, torch.Tensor], torch.Tensor]] = {
    "anothers weight": lambda m, x: F.linear(F.linear(x, m.emb.weight), m.emb.weight.t()),
    "a sum with another's": lambda m, x: x @ (m.proj.weight + m.qkv.weight[:C]),
    "float mask": lambda m, x: sdpa(m, x, torch.full((x.shape[1],) * 2, -torch.inf).triu(1)),
    "mask of finfo": lambda m, x: sdpa(m, x, torch.full((x.shape[1],) * 2, torch.finfo(x.dtype).min).triu(1)),
    "mha": lambda m, x: m.mha(x, x, x, need_weights=False)[0],
    "mha with weights": lambda m, x: m.mha(x, x, x)[0],
    "encoder": lambda m, x: m.encoder(x),
    "encoder with padding": padded,
    "weight norm": lambda m, x: m.normed(x),
    "compiled": lambda m, x: m.compiled(x),
    "custom function": lambda m, x: gated(m.proj(x)),
    "rotary in complex numbers": rotated,
    "float inside": lambda m, x: F.linear(x.float(), m.proj.weight.float()).to(torch.float32),
    "half inside": lambda m, x: m.proj(x.half().float()) if x.dtype == torch.float64 else m.proj(x),
    "written in place": written,
    "one hot": lambda m, x: F.one_hot(x[..., 0].long().clamp(0, 5), C).float() @ m.proj.weight,
    "a table in a buffer": lambda m, x: F.linear(F.linear(x, m.get_buffer("table")), m.get_buffer("table").t()),
    "einsum": lambda m, x: torch.einsum("btc,dc->btd", x, m.proj.weight),
    "convolution": lambda m, x: (
        F.conv1d(F.pad(x.mT, (2, 0)), m.proj.weight[..., None].expand(-1, -1, 3), m.proj.bias).mT
    ),
    "lstm": lambda m, x: nn.functional.dropout(x, 0.5, training=False).cumsum(1),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_whatever_a_forward_does_is_computed_in_float64(name: str) -> None:
    """Within float32's rounding of eager, and without being it: the exact value is not to be had otherwise."""
    model = Model(FORWARDS[name])
    eager, found = run(model, IDS), run_reference(model, IDS)
    assert found is not None and found.dtype == np.float64
    error = np.sqrt(np.square(found - eager).mean()) / np.sqrt(np.square(found).mean())
    assert 1e-8 < error < 1e-6
    with in_float64(model) as mode:
        run(model, IDS)
    assert not mode.narrowed


def test_what_the_forward_makes_of_numbers_alone_keeps_its_rounding() -> None:
    """The angles of a rotary embedding in float32 are part of the model: in float64 they would be others."""

    def attend(model: Model, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sin(torch.arange(x.shape[1]).float() * 1e5)[:, None]

    found = run_reference(Model(attend), IDS)
    expected = run(Model(lambda m, x: x * torch.sin(torch.arange(17).float() * 1e5)[:, None].double()).double(), IDS)
    assert found is not None and np.abs(found - expected).max() < 1e-12


def test_an_operation_without_float64_is_run_in_float32_and_said() -> None:
    @torch.library.custom_op("gptexport_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("float32 alone")
        return 2 * x

    model = Model(lambda m, x: twice(x))
    found = run_reference(model, IDS)
    assert found is not None and found.dtype == np.float64
    with in_float64(model) as mode:
        run(model, IDS)
    assert mode.narrowed == {"gptexport_tests.twice.default"}


def test_a_forward_that_insists_on_its_dtype_has_no_reference() -> None:
    def attend(model: Model, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        return x

    assert run_reference(Model(attend), IDS) is None


def test_a_perturbed_run_is_another_equally_right_one() -> None:
    model = Model(sdpa)
    reference, eager = run_reference(model, IDS), run(model, IDS)
    assert reference is not None
    own = np.sqrt(np.square(eager - reference).mean())
    for lookups, low in ((True, 0.2), (False, 0.5)):
        with Perturbed(2.0**-23, seed=1, lookups=lookups):
            found = run(model, IDS)
        assert low * own < np.sqrt(np.square(found - eager).mean()) < 4 * own
    assert np.array_equal(run(model, IDS), eager)
