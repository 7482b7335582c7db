"""What `inspect` tells about the formats that are read."""

from pathlib import Path

import pytest
import torch

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from tests.support.builders import Builder, tiny_build_nanogpt, tiny_huggingface, tiny_nanogpt

CASES = [
    (tiny_nanogpt, {}, "nanogpt"),
    (tiny_nanogpt, {"tied": False, "bias": False}, "nanogpt"),
    (tiny_build_nanogpt, {"dtype": torch.bfloat16}, "build-nanogpt"),
    (tiny_huggingface, {}, "huggingface"),
    (tiny_huggingface, {"tie_word_embeddings": False, "dtype": torch.float16, "sharded": True}, "huggingface"),
]


@pytest.mark.parametrize(("tiny", "options", "name"), CASES)
def test_it_tells_what_loading_finds(tmp_path: Path, tiny: Builder, options: dict[str, object], name: str) -> None:
    path = tiny(tmp_path / "c", **options)
    info, checkpoint = describe_checkpoint(str(path)), load_checkpoint(str(path))
    assert (info.source, info.format, info.readable) == (str(path), name, True)
    assert (info.config, info.assumed.get("gelu"), info.notes) == (
        checkpoint.config,
        checkpoint.assumed.get("gelu"),
        checkpoint.notes,
    )
    assert isinstance(info.config, GPTConfig) and info.tied == info.config.tied
    assert info.parameters == sum(p.numel() for p in checkpoint.model.parameters())
    assert (info.problems, info.unsafe_globals) == ((), ())
    assert set(info.dtypes) == {str(options.get("dtype", torch.float32)).removeprefix("torch.")}
    place = path if path.is_dir() else path.parent
    assert info.file_size == sum((place / file).stat().st_size for file in info.files)


def test_training_progress_is_told(tmp_path: Path) -> None:
    nanogpt = describe_checkpoint(str(tiny_nanogpt(tmp_path / "a")))
    assert nanogpt.training == {"iter_num": 2000, "best_val_loss": pytest.approx(1.4697)}
    assert describe_checkpoint(str(tiny_build_nanogpt(tmp_path / "b"))).training == {"step": 19072, "val_loss": 3.2924}


def test_stored_tensors_are_counted(tmp_path: Path) -> None:
    """A tied head that the file does not hold is not counted."""
    assert describe_checkpoint(str(tiny_huggingface(tmp_path / "h"))).dtypes == {"float32": 2 + 3 * 12 + 2}
