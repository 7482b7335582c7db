"""nanoGPT's ckpt.pt and build-nanogpt's model_*.pt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError
from tests.support.builders import SIZES, Builder, random_weights, tiny_build_nanogpt, tiny_nanogpt
from tests.support.nanogpt_reference import nanogpt_logits, relative_rms

IDX = torch.tensor([[5, 0, 96, 31, 31, 7, 2], [1, 2, 3, 4, 5, 6, 90]])
SHAPE = {"n_layer": SIZES["n_layer"], "n_head": SIZES["n_head"]}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_computes_nanogpts_forward_with_erf(tmp_path: Path, tied: bool, bias: bool) -> None:
    """Logits equal those of an independent float64 implementation, and not those of the other GELU."""
    checkpoint = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", tied=tied, bias=bias)))
    weights = random_weights(tied=tied, bias=bias)
    logits = checkpoint.model(IDX)
    assert relative_rms(logits, nanogpt_logits(weights, IDX, **SHAPE, gelu="erf")) <= 2e-6
    assert relative_rms(logits, nanogpt_logits(weights, IDX, **SHAPE, gelu="tanh")) > 2e-5
    assert isinstance(checkpoint.config, GPTConfig)
    assert (checkpoint.config.tied, checkpoint.config.bias, checkpoint.config.gelu) == (tied, bias, "erf")
    assert (checkpoint.format, checkpoint.assumed.get("gelu")) == ("nanogpt", "format")
    assert (checkpoint.block_size, checkpoint.vocab_size) == (SIZES["block_size"], SIZES["vocab_size"])


@pytest.mark.parametrize("tied", [True, False])
def test_build_nanogpt_computes_with_tanh(tmp_path: Path, tied: bool) -> None:
    checkpoint = load_checkpoint(str(tiny_build_nanogpt(tmp_path / "model_19072.pt", tied=tied)))
    expected = nanogpt_logits(random_weights(tied=tied), IDX, **SHAPE, gelu="tanh")
    assert relative_rms(checkpoint.model(IDX), expected) <= 2e-6
    assert (checkpoint.format, checkpoint.assumed.get("gelu")) == ("build-nanogpt", "format")
    assert any("__main__.GPTConfig" in note for note in checkpoint.notes)


def test_model_is_ready_for_export(tmp_path: Path) -> None:
    """Eval mode, float32, no gradients, on the CPU."""
    model = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt"))).model
    assert not any(module.training for module in model.modules())
    parameters = list(model.parameters())
    assert {(p.dtype, p.requires_grad, p.device.type) for p in parameters} == {(torch.float32, False, "cpu")}


@pytest.mark.parametrize("tiny", [tiny_nanogpt, tiny_build_nanogpt])
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_and_old_files_change_nothing(tmp_path: Path, tiny: Builder, wrapper: str, legacy: bool) -> None:
    """torch.compile's and DDP's prefixes go; files from before torch 1.6 load too."""
    plain = load_checkpoint(str(tiny(tmp_path / "plain.pt"))).model
    wrapped = load_checkpoint(str(tiny(tmp_path / "wrapped.pt", wrapper=wrapper, legacy=legacy))).model
    assert torch.equal(plain(IDX), wrapped(IDX))


def test_mask_buffers_are_dropped_and_other_tensors_of_that_name_are_not(tmp_path: Path) -> None:
    load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", masks=True, wrapper="_orig_mod.")))
    odd = random_weights() | {"transformer.h.1.attn.bias": torch.zeros(30)}
    with pytest.raises(CheckpointError, match=r"unexpected\s+transformer\.h\.1\.attn\.bias \(30,\)"):
        load_checkpoint(str(tiny_nanogpt(tmp_path / "odd.pt", weights=odd)))


def test_a_head_with_equal_values_is_tied_and_with_other_values_is_not(tmp_path: Path) -> None:
    """Content decides: DDP and float casts store the one weight twice."""
    weights = random_weights()
    twice = weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}
    config = load_checkpoint(str(tiny_nanogpt(tmp_path / "twice.pt", weights=twice))).config
    assert isinstance(config, GPTConfig) and config.tied
    twice["lm_head.weight"][3, 4] += 1e-6
    config = load_checkpoint(str(tiny_nanogpt(tmp_path / "other.pt", weights=twice))).config
    assert isinstance(config, GPTConfig) and not config.tied


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tied", [True, False])
def test_other_floats_are_cast(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    """Each weight is exactly the stored one in float32, tied ones still one tensor, and a note says so."""
    checkpoint = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", dtype=dtype, tied=tied)))
    loaded = checkpoint.model.state_dict()
    for name, weight in random_weights(tied=tied).items():
        assert torch.equal(loaded[name], weight.to(dtype).to(torch.float32)), name
    assert (loaded["lm_head.weight"].data_ptr() == loaded["transformer.wte.weight"].data_ptr()) == tied
    assert any(f"stored in {str(dtype).removeprefix('torch.')}" in note for note in checkpoint.notes)


@pytest.mark.parametrize("loss", [np.float64(3.25), np.float32(3.25), torch.tensor(3.25), 3.25, np.int64(4)], ids=repr)
@pytest.mark.parametrize("legacy", [False, True])
def test_numpy_losses_are_read(tmp_path: Path, loss: Any, legacy: bool) -> None:
    path = tiny_build_nanogpt(tmp_path / "model.pt", val_loss=loss, legacy=legacy)
    assert load_checkpoint(str(path)).format == "build-nanogpt"
    assert describe_checkpoint(str(path)).training == {"step": 19072, "val_loss": float(loss)}


MALFORMED = [
    ({"n_layer": ...}, "lacks n_layer"),
    ({"n_layer": ..., "vocab_size": ...}, "lacks vocab_size, n_layer"),
    ({"n_layer": "3"}, "n_layer is '3'"),
    ({"n_head": True}, "n_head is True"),
    ({"n_embd": 30.0}, r"n_embd is 30\.0"),
    ({"vocab_size": None}, "vocab_size is None"),
    ({"block_size": 0}, "block_size is 0"),
    ({"n_head": 7}, "n_embd 30 is not a multiple of n_head 7"),
    ({"bias": "yes"}, "bias is 'yes'"),
    ({"rope": True}, "has rope, which"),
]


@pytest.mark.parametrize(("fields", "message"), MALFORMED)
@pytest.mark.parametrize("tiny", [tiny_nanogpt, tiny_build_nanogpt])
def test_a_malformed_config_names_the_field(
    tmp_path: Path, tiny: Builder, fields: dict[str, object], message: str
) -> None:
    path = tiny(tmp_path / "ckpt.pt", weights=random_weights(), **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))


def test_model_args_that_are_no_dict(tmp_path: Path) -> None:
    path = tiny_nanogpt(tmp_path / "ckpt.pt", extra={"model_args": [1, 2]})
    with pytest.raises(CheckpointError, match="model_args is a list; expected a dict"):
        load_checkpoint(str(path))


def test_checkpoints_from_before_the_bias_option_have_biases(tmp_path: Path) -> None:
    config = load_checkpoint(
        str(tiny_nanogpt(tmp_path / "ckpt.pt", bias=..., dropout=..., weights=random_weights()))
    ).config
    assert isinstance(config, GPTConfig) and config.bias


def test_a_plain_dict_serves_as_build_nanogpts_config(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": random_weights(), "config": dict(SIZES), "step": 1, "val_loss": 2.0}, path)
    assert load_checkpoint(str(path)).format == "build-nanogpt"


def test_file_names_do_not_matter(tmp_path: Path) -> None:
    assert load_checkpoint(str(tiny_build_nanogpt(tmp_path / "ckpt.pt"))).format == "build-nanogpt"
    assert load_checkpoint(str(tiny_nanogpt(tmp_path / "model_00001.bin"))).format == "nanogpt"
