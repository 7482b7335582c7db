"""build-nanogpt's `log/model_*.pt`, from the "Let's reproduce GPT-2" lecture: `model`, `config`, `step`, `val_loss`.

`config` is the training script's own pickled `GPTConfig`, read through an inert stand-in (see `torch_file`), or a plain
dict. GELU is tanh, which is what train_gpt2.py computes. Biases are always there, and so is `lm_head.weight`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.architectures import gpt2
from gptexport.checkpoints.formats.nanogpt import config_of, training
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.torch_file import PickledConfig
from gptexport.checkpoints.types import Stored

FORMAT = "build-nanogpt"
GELU = "tanh"


def read(payload: Mapping[str, Any], path: Path, *, config_globals: tuple[str, ...] = ()) -> Stored:
    """What a build-nanogpt checkpoint says, its weights still mapped.

    Raises:
        CheckpointError: config lacks a field, has one that gptexport does not know, or a wrong value in it.
    """
    weights, problems = clean_state_dict(payload["model"])
    fields = payload["config"]
    if isinstance(fields, PickledConfig):
        fields = vars(fields)
    config = config_of(fields, where=f"{path}: config", gelu=GELU, tied=is_tied(weights))
    return Stored(
        format=FORMAT,
        path=path,
        config=config,
        architecture=gpt2.ARCHITECTURE,
        assumed={"gelu": "format"},
        weights=weights,
        files=(path,),
        training=training(payload, ("step", "val_loss")),
        problems=problems,
        notes=tuple(
            f"config is a pickled {name}: its fields were read, its code was not run" for name in config_globals
        ),
    )
