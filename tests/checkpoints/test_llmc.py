"""llm.c's `.bin`, written here from the format's description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError
from tests.support.builders import random_weights
from tests.support.format_builders import llmc
from tests.support.nanogpt_reference import relative_rms

V, T, L, H, C = 97, 17, 3, 3, 30
IDX = torch.tensor([[5, 0, 96, 31, 31, 7, 2], [1, 2, 3, 4, 5, 6, 90]])


def theirs(dtype: torch.dtype) -> Any:
    """transformers' GPT-2 with the same weights, rounded as the file rounds them."""
    config = transformers.GPT2Config(n_positions=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C)
    model = transformers.GPT2LMHeadModel(config).eval()
    weights = random_weights(block_size=T, vocab_size=V, n_layer=L, n_embd=C)
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    rounded = {name: weight.to(dtype).float() for name, weight in weights.items()}
    model.load_state_dict({name: w.t() if name.endswith(conv1d) else w for name, w in rounded.items()})
    return model


@torch.no_grad()
@pytest.mark.parametrize(("version", "dtype"), [(3, torch.float32), (5, torch.bfloat16)])
def test_logits_are_those_of_transformers(tmp_path: Path, version: int, dtype: torch.dtype) -> None:
    checkpoint = load_checkpoint(str(llmc(tmp_path / "model.bin", version=version)))
    assert relative_rms(checkpoint.model(IDX), theirs(dtype)(IDX).logits) <= 2e-6
    assert (checkpoint.format, checkpoint.vocab_size, checkpoint.block_size) == ("llm.c", V, T)
    head = checkpoint.model.get_parameter("lm_head.weight")
    assert (
        head.shape == (V, C) and head.data_ptr() == checkpoint.model.get_parameter("transformer.wte.weight").data_ptr()
    )
    assert any("GELU taken as tanh" in note for note in checkpoint.notes)


def test_it_can_be_shortened(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(llmc(tmp_path / "model.bin")), block_size=9, vocab_size=50)
    assert checkpoint.model(IDX[:1, :1] % 50).shape == (1, 1, 50)


def test_inspect_describes_it(tmp_path: Path) -> None:
    info = describe_checkpoint(str(llmc(tmp_path / "model.bin", version=5)))
    assert info.readable and info.format == "llm.c" and info.dtypes == {"bfloat16": 3 + 12 * L + 1}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 1}, r"version 1 of llm\.c's format; gptexport reads 3 \(float32\) and 5 \(bfloat16\)"),
        ({"L": 4}, "its header asks for .* truncated or corrupt"),
        ({"T": 0}, "the header is corrupt: block_size is 0"),
        ({"H": 7}, "the header is corrupt: n_embd 30 is not a multiple of n_head 7"),
        ({"C": 2**31 - 1, "H": 1}, "its header asks for"),
        ({"padded": 96}, "vocab_size 97 is padded to 96"),
        ({"padded": 97}, "its header asks for"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: dict[str, int], message: str) -> None:
    version = header.pop("version", 3)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(llmc(tmp_path / "model.bin", version=version, **header)))


@pytest.mark.parametrize("size", [4, 31, 1023, 1024, -4, 4_000_000])
def test_a_truncated_or_a_longer_file_is_refused(tmp_path: Path, size: int) -> None:
    path = llmc(tmp_path / "model.bin")
    data = path.read_bytes()
    path.write_bytes(data[:size] if size < len(data) else data + bytes(64))
    with pytest.raises(CheckpointError, match=r"model\.bin"):
        load_checkpoint(str(path))
