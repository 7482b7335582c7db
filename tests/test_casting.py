"""A module in another dtype is the same module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport.casting import Cast, cast_parameters

V, C, T = 13, 8, 6
IDX = torch.tensor([[1, 12, 0, 3, 7, 7]])
ANGLE = torch.outer(torch.arange(T).float(), torch.tensor([1.0, 0.1, 0.01, 0.001]))


class Base(nn.Module):
    wte: nn.Embedding
    head: nn.Linear
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(V, C)
        self.head = nn.Linear(C, V, bias=False)
        self.head.weight = self.wte.weight

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.positions(self.wte(idx)))
        return logits  # (B,T,V)


class Complex(Base):
    """Llama's rotary embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones_like(ANGLE), ANGLE))

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.table[: x.shape[1]]).flatten(-2).to(x.dtype)


class Double(Base):
    """A table that is float64 for a reason: its differences are below float32's rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", 1 + 1e-9 * torch.arange(T, dtype=torch.float64)[:, None])

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return x + ((self.table[: x.shape[1]] - 1) * 1e9).to(x.dtype)


class Angles(Base):
    """A table that its forward uses in float32, whatever the weights are in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(T).float()[:, None] * 0.1234567)

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.cos(self.table[: x.shape[1]].float()).to(x.dtype)


class Added(Base):
    """A table that is added as it is, so that it has to have the weights' dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(T).float()[:, None] * 0.1234567)

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[: x.shape[1]]


KEPT = [
    (Complex, torch.float32, torch.bfloat16, torch.complex64),
    (Complex, torch.bfloat16, torch.float32, torch.complex64),
    (Complex, torch.float32, torch.float64, torch.complex64),
    (Double, torch.float32, torch.float16, torch.float64),
    (Double, torch.float16, torch.float32, torch.float64),
    (Angles, torch.float32, torch.bfloat16, torch.float32),
    (Angles, torch.bfloat16, torch.float32, torch.float32),
]


@pytest.mark.parametrize(("make", "came", "dtype", "table"), KEPT)
def test_a_buffer_keeps_the_dtype_that_carries_its_meaning(
    make: Callable[[], Base], came: torch.dtype, dtype: torch.dtype, table: torch.dtype
) -> None:
    model = make()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(came)
    before = model(IDX)
    cast_parameters(model, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.table.dtype == table and model.head.weight is model.wte.weight
    worst = max(torch.finfo(came).eps, torch.finfo(dtype).eps)
    assert (model(IDX) - before).abs().max() <= 8 * worst * before.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_buffer_follows_where_the_forward_does_not_run_without(dtype: torch.dtype) -> None:
    model = Added()
    cast_parameters(model, dtype)
    assert model.table.dtype == dtype and model(IDX).dtype == dtype


def test_a_table_in_the_weights_own_dtype_is_widened_with_them() -> None:
    model = Added().half()
    cast_parameters(model, torch.float32)
    assert model.table.dtype == torch.float32 and model(IDX).dtype == torch.float32


def test_a_buffer_of_two_modules_stays_one() -> None:
    first, second = Added(), Added()
    second.table = first.table
    both = nn.Sequential(first.half(), second.half())
    second.table = first.table
    cast_parameters(both, torch.float32)
    assert first.table is second.table and first.table.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_model_is_put_back(dtype: torch.dtype) -> None:
    model = Complex()
    before, weight, place = model(IDX), model.wte.weight, model.wte.weight.data_ptr()
    cast = Cast(model, dtype)
    for _ in range(2):
        with cast as made:
            assert made is model and {parameter.dtype for parameter in made.parameters()} == {dtype}
            assert model(IDX).dtype == dtype and model.head.weight is model.wte.weight
            assert (model.wte.weight.data_ptr() == place) == (dtype == torch.float32)
        assert model.wte.weight is weight and weight.dtype == torch.float32 and weight.data_ptr() == place
        assert torch.equal(model(IDX), before)


def test_buffers_that_followed_are_put_back() -> None:
    model = Added()
    table, before = model.table, model(IDX)
    with Cast(model, torch.bfloat16):
        assert model.table.dtype == torch.bfloat16
        with Cast(model, torch.float32):
            assert model.table.dtype == torch.float32 and not torch.equal(model.table, table), "rounded, as the weights"
        assert model.table.dtype == torch.bfloat16
    assert model.table is table and torch.equal(model(IDX), before)


def test_a_model_is_put_back_after_an_error() -> None:
    model = Added()
    before = model(IDX)
    with pytest.raises(KeyError), Cast(model, torch.float64):
        raise KeyError
    assert torch.equal(model(IDX), before)


class Lambda(Base):
    """As minGPT's Block: what a copy would leave with the weights of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(C, C)
        self.__dict__["positions"] = lambda x: self.up(x)


def test_what_only_a_lambda_reaches_is_cast() -> None:
    model = Lambda()
    before = model(IDX)
    with Cast(model, torch.bfloat16):
        assert model(IDX).dtype == torch.bfloat16
    assert torch.equal(model(IDX), before)


def test_weights_that_share_memory_go_on_sharing_it() -> None:
    model = Base()
    model.head.weight = nn.Parameter(model.wte.weight.data)
    with Cast(model, torch.float16):
        assert model.head.weight.data_ptr() == model.wte.weight.data_ptr()


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_to_would_have_lost_what_these_keep() -> None:
    """nn.Module.to, which the tests above would not pass with."""
    assert not torch.allclose(Complex().to(torch.float64)(IDX).float(), Complex()(IDX), rtol=1e-2)
    assert F.l1_loss(Angles().to(torch.bfloat16).table.float(), Angles().table) > 0
