"""Fields of a Hugging Face config of types and sizes that nobody writes: refused in words, whatever the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.checkpoints.torch_file import read_torch_file
from gptexport.errors import CheckpointError

LLAMA = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}
QWEN = {**LLAMA, "model_type": "qwen2"}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}
NEOX = {"model_type": "gpt_neox"}
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA, {"architectures": 5}, "architectures is 5; expected a list of names"),
    (LLAMA, {"architectures": [5]}, "expected a list of names"),
    (NEOX, {"architectures": True}, "architectures is True; expected a list of names"),
    (NEOX, {"architectures": [{}]}, "expected a list of names"),
    (NEOX, {"hidden_act": {}}, "hidden_act is {}; gptexport does the two GELUs"),
    (NEOX, {"hidden_size": 10**600}, "float"),
    (QWEN, {"rope_theta": 1.0, "rope_scaling": YARN}, "give[s]? no frequencies"),
    (QWEN, {"rope_scaling": {**YARN, "beta_slow": 1e308}}, r"no frequencies .math domain"),
    (QWEN, {"rope_scaling": {**YARN, "beta_fast": 1e-320}}, r"no frequencies .cannot convert"),
    (
        QWEN,
        {
            "max_position_embeddings": 10**600,
            "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 8},
        },
        "max_position_embeddings",
    ),
]


@pytest.mark.parametrize(("base", "change", "message"), CASES, ids=[message for *_, message in CASES])
def test_a_field_that_cannot_be_is_named(
    tmp_path: Path, base: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**base, **change}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))


def test_an_archive_that_says_it_is_of_many_disks_is_corrupt(tmp_path: Path) -> None:
    """Python's zipfile raises over it where it is only asked whether it is one."""
    path = tmp_path / "lit_model.pth"
    torch.save({"a": torch.zeros(1)}, path)
    data = bytearray(path.read_bytes())
    locator = data.index(b"PK\x06\x07")
    data[locator + 16] = 7
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read_torch_file(path)
