"""llama2.c's ckpt.pt: rotary pairs interleaved, the head tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.errors import CheckpointError
from tests.support.format_builders import llama2c
from tests.support.llama_builders import IDX, logits_of
from tests.support.nanogpt_reference import relative_rms


@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    path, model = llama2c(tmp_path / "ckpt.pt")
    checkpoint = load_checkpoint(str(path))
    assert relative_rms(checkpoint.model(IDX), logits_of(model)) <= 2e-6
    assert checkpoint.format == "llama2.c" and checkpoint.config.to_dict()["tied"]
    assert checkpoint.block_size == 64


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"n_heads": ...}, "model_args lacks n_heads"),
        ({"rope_theta": 1e6}, "model_args has rope_theta, which"),
        ({"n_heads": "6"}, "n_heads is '6'"),
        ({"n_heads": 7}, "n_head is 7, which does not divide the queries' 60 rows"),
        ({"n_kv_heads": 3}, "n_kv_heads is 3, but the keys have 2 heads"),
        ({"n_layers": 4}, r"missing\s+model\.layers\.3"),
        ({"norm_eps": -1.0}, r"norm_eps is -1\.0"),
    ],
)
def test_malformed_model_args_name_the_field(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    path, _ = llama2c(tmp_path / "ckpt.pt", **args)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))
