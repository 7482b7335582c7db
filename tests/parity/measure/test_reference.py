"""The float64 reference: exact, bounded in memory, and it leaves the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

from gptexport.checkpoints import load_checkpoint
from gptexport.parity.measure.reference import in_float64, run, run_reference

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))


def test_it_is_the_model_in_float64(checkpoint: Path) -> None:
    model = load_checkpoint(str(checkpoint)).model
    expected = run(copy.deepcopy(model).to(torch.float64), IDS)
    assert expected.dtype == np.float64
    assert np.array_equal(run_reference(model, IDS), expected)


def test_never_two_modules_are_wide_at_once(checkpoint: Path) -> None:
    """But for those that hold others, which own no weights here."""
    model = load_checkpoint(str(checkpoint)).model
    most = 0

    def count(_module: nn.Module, _args: object, _output: object) -> None:
        nonlocal most
        wide = {id(p) for p in model.parameters() if p.dtype == torch.float64}
        most = max(most, len(wide))

    hooks = [m.register_forward_hook(count, prepend=True) for m in model.modules() if not list(m.children())]
    run_reference(model, IDS)
    for hook in hooks:
        hook.remove()
    assert most == 2, "a weight and its bias"


def test_an_error_inside_leaves_the_model_as_it_was(checkpoint: Path) -> None:
    model = load_checkpoint(str(checkpoint)).model
    with pytest.raises(IndexError), in_float64(model):
        run(model, IDS + 1000)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.get_parameter("lm_head.weight") is model.get_parameter("transformer.wte.weight")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_interrupt_leaves_the_model_as_it_was(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_checkpoint(str(checkpoint)).model

    def interrupt(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.get_submodule("transformer.h.1.mlp.c_fc"), "forward", interrupt)
    with pytest.raises(KeyboardInterrupt), in_float64(model):
        run(model, IDS)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_module_that_reads_anothers_weights() -> None:
    """Then only a whole copy is in float64 throughout."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(97, 8)

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return self.wte(idx) @ self.wte.weight.t()

    model = Tied().requires_grad_(False)
    expected = run(copy.deepcopy(model).to(torch.float64), IDS)
    assert np.array_equal(run_reference(model, IDS), expected)
