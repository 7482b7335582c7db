"""Missing, unexpected and mis-shaped weights are one error that lists them all."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError
from tests.support.builders import random_weights, tiny_huggingface, tiny_nanogpt


def damaged() -> dict[str, object]:
    weights: dict[str, object] = dict(random_weights())
    del weights["transformer.h.1.mlp.c_fc.bias"]
    del weights["lm_head.weight"]
    weights["transformer.h.2.attn.rotary"] = torch.zeros(4, 5, dtype=torch.float16)
    weights["transformer.wpe.weight"] = torch.zeros(16, 30)
    weights["transformer.h.0.ln_1.weight"] = torch.ones(30, dtype=torch.int8)
    weights["transformer.step"] = 12
    weights["transformer.sparse"] = torch.eye(3).to_sparse()
    return weights


LINES = [
    r"missing +transformer\.h\.1\.mlp\.c_fc\.bias \(120,\)",
    r"missing +lm_head\.weight \(97, 30\)",
    r"unexpected +transformer\.h\.2\.attn\.rotary \(4, 5\) float16",
    r"mis-shaped +transformer\.wpe\.weight: got \(16, 30\), expected \(17, 30\)",
    r"wrong dtype +transformer\.h\.0\.ln_1\.weight: got int8",
    r"not a tensor +transformer\.step: int",
    r"not dense +transformer\.sparse",
]


def test_one_error_lists_everything(tmp_path: Path) -> None:
    path = tiny_nanogpt(tmp_path / "ckpt.pt", weights=damaged())
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(str(path))
    for line in LINES:
        assert re.search(line, str(raised.value)), line
    assert str(raised.value).count("\n  ") == len(LINES), "and nothing that is in order"


def test_inspect_tells_the_same_and_does_not_fail(tmp_path: Path) -> None:
    info = describe_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", weights=damaged())))
    assert not info.readable
    assert len(info.problems) == len(LINES)


@pytest.mark.parametrize(
    ("n_layer", "message"),
    [
        (5, r"h\.3\.\* to transformer\.h\.4\.\*: 2 whole blocks \(n_layer is 5, the highest block stored is 2\)"),
        (10**9, r"h\.3\.\* to transformer\.h\.999999999\.\*: 999999997 whole blocks"),
        (2, r"unexpected +transformer\.h\.2\.ln_1\.weight"),
    ],
)
def test_another_number_of_blocks(tmp_path: Path, n_layer: int, message: str) -> None:
    """Also where it is absurd: that must not take the time or memory of so many blocks."""
    path = tiny_nanogpt(tmp_path / "ckpt.pt", weights=random_weights(), n_layer=n_layer)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(str(path))
    assert str(raised.value).count("missing") == (n_layer > 3)


def test_a_block_in_the_middle_is_missing(tmp_path: Path) -> None:
    weights = {name: weight for name, weight in random_weights().items() if ".h.1." not in name}
    with pytest.raises(CheckpointError, match=r"missing +transformer\.h\.1\.\*: the whole block") as raised:
        load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", weights=weights)))
    assert str(raised.value).count("missing") == 1


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing +transformer\.h\.0\.\* to transformer\.h\.2\.\*") as raised:
        load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", weights={})))
    assert "wte" in str(raised.value)


def test_a_name_stored_twice(tmp_path: Path) -> None:
    weights = random_weights()
    twice = weights | {"_orig_mod.transformer.wpe.weight": weights["transformer.wpe.weight"] + 1}
    with pytest.raises(CheckpointError, match=r"twice +transformer\.wpe\.weight"):
        load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", weights=twice)))


@pytest.mark.parametrize("prefix", [True, False])
def test_hugging_face_folders_are_loaded_as_strictly(tmp_path: Path, prefix: bool) -> None:
    path = tiny_huggingface(tmp_path / "hf", prefix=prefix)
    weights = load_file(path / "model.safetensors")
    front = "transformer." if prefix else ""
    del weights[f"{front}h.0.ln_2.bias"]
    weights[f"{front}h.0.mlp.c_fc.weight"] = weights[f"{front}h.0.mlp.c_fc.weight"].t().contiguous()  # not Conv1D
    weights["score.weight"] = torch.zeros(2, 30)
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(str(path))
    raised.match(r"missing +transformer\.h\.0\.ln_2\.bias")
    raised.match(r"mis-shaped +transformer\.h\.0\.mlp\.c_fc\.weight: got \(30, 120\), expected \(120, 30\)")
    raised.match(r"unexpected +transformer\.score\.weight")
    assert str(raised.value).count("\n  ") == 3
