"""GPT-2's weights alone, as people save them: bare, wrapped, beside an optimizer, in Lightning's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.builders import SIZES, random_weights
from tests.support.llama_builders import save
from tests.support.nanogpt_reference import nanogpt_logits, relative_rms

IDX = torch.tensor([[5, 0, 96, 31, 31, 7, 2], [1, 2, 3, 4, 5, 6, 90]])
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def prefixed(prefix: str, *, bias: bool = True, tied: bool = True) -> dict[str, torch.Tensor]:
    return {prefix + name: weight for name, weight in random_weights(bias=bias, tied=tied).items()}


PAYLOADS: dict[str, Any] = {
    "bare": prefixed(""),
    "of DDP and torch.compile": prefixed("module._orig_mod."),
    "beside an optimizer": {"model": prefixed(""), "optimizer": {"state": {}}, "step": 3},
    "model_state_dict": {"model_state_dict": prefixed(""), "epoch": 3},
    "Lightning's": {"state_dict": prefixed("model."), "epoch": 3, "global_step": 10, "pytorch-lightning_version": "2"},
    "Lightning's, another attribute": {"state_dict": prefixed("net.gpt."), "epoch": 3},
    "transformers', without its prefix": {
        name.removeprefix("transformer."): w.t().clone() if name.endswith(CONV1D) else w
        for name, w in random_weights().items()
        if name != "lm_head.weight"
    },
    "with a loss module beside": {
        "state_dict": prefixed("model.") | {"model.transformer.h.0.attn.bias": torch.ones(1, 1, 17, 17)}
    },
}


@torch.no_grad()
@pytest.mark.parametrize("name", PAYLOADS)
def test_it_is_read_once_the_heads_are_said(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "weights.pt", PAYLOADS[name])
    checkpoint = load_checkpoint(str(path), n_head=3)
    expected = nanogpt_logits(random_weights(), IDX, n_layer=3, n_head=3, gelu="tanh")
    assert relative_rms(checkpoint.model(IDX), expected) <= 2e-6
    assert checkpoint.format == "state-dict" and checkpoint.assumed == {"gelu": "format", "n_head": "option"}
    assert (checkpoint.block_size, checkpoint.vocab_size) == (SIZES["block_size"], SIZES["vocab_size"])


@torch.no_grad()
def test_without_biases_it_is_taken_as_nanogpts(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", prefixed("", bias=False, tied=False))
    checkpoint = load_checkpoint(str(path), n_head=3)
    weights = random_weights(bias=False, tied=False)
    assert relative_rms(checkpoint.model(IDX), nanogpt_logits(weights, IDX, n_layer=3, n_head=3, gelu="erf")) <= 2e-6
    assert any("GELU taken as erf" in note and "--gelu tanh" in note for note in checkpoint.notes)
    other = load_checkpoint(str(path), n_head=3, gelu="tanh")
    assert relative_rms(other.model(IDX), nanogpt_logits(weights, IDX, n_layer=3, n_head=3, gelu="tanh")) <= 2e-6


def test_the_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", prefixed(""))
    with pytest.raises(CheckpointError, match=r"do not say how many heads.*pass n_head"):
        load_checkpoint(str(path))
    info = describe_checkpoint(str(path))
    assert (info.format, info.readable) == ("state-dict", False)
    with pytest.raises(CheckpointError, match="n_head is 0"):
        load_checkpoint(str(path), n_head=0)


def test_a_missing_weight_from_which_a_size_follows_is_named(tmp_path: Path) -> None:
    weights = prefixed("")
    del weights["transformer.wpe.weight"]
    with pytest.raises(CheckpointError, match=r"transformer\.wpe\.weight is missing, from which"):
        load_checkpoint(str(save(tmp_path / "weights.pt", weights)), n_head=3)


def test_an_optimizers_state_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "optim_003750_rank0.pt", {"state": {}, "param_groups": [{"lr": 1.0}]})
    with pytest.raises(UnknownCheckpointError, match="an optimizer's state"):
        load_checkpoint(str(path))
