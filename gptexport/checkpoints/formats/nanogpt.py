"""nanoGPT's `ckpt.pt`: `model`, and the `model_args` it was made with.

GELU is erf, which is what nanoGPT's model.py computes; the file does not say. `lm_head.weight` is always stored, also
when it is tied to wte, so that a file without it is incomplete.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import gpt2
from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.sizes import wrong_values_in
from gptexport.checkpoints.types import Stored
from gptexport.errors import CheckpointError
from gptexport_runtime.files import is_file

FORMAT = "nanogpt"
GELU = "erf"
_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_NO_EFFECT = ("dropout",)  # off in eval mode


def read(payload: Mapping[str, Any], path: Path) -> Stored:
    """What a nanoGPT checkpoint says, its weights still mapped.

    Raises:
        CheckpointError: model_args lacks a field, has one that gptexport does not know, or a wrong value in it.
    """
    weights, problems = clean_state_dict(payload["model"])
    config = config_of(payload["model_args"], where=f"{path}: model_args", gelu=GELU, tied=is_tied(weights))
    return Stored(
        format=FORMAT,
        path=path,
        config=config,
        architecture=gpt2.ARCHITECTURE,
        assumed={"gelu": "format"},
        weights=weights,
        files=(path,),
        tokenizer=_characters(payload.get("config"), path),
        training=training(payload, ("iter_num", "best_val_loss")),
        problems=problems,
    )


def _characters(config: Any, path: Path) -> Path | None:
    """`data/<dataset>/meta.pkl`, of the repository whose `out*/ckpt.pt` this is: where nanoGPT's sample.py looks."""
    dataset = config.get("dataset") if isinstance(config, Mapping) else None
    if not isinstance(dataset, str) or not _PLAIN_NAME.fullmatch(dataset):
        return None
    meta = path.resolve().parent.parent / "data" / dataset / "meta.pkl"
    return meta if is_file(meta) else None


def config_of(fields: Any, *, where: str, gelu: str, tied: bool) -> GPTConfig:
    """The config in a training script's own fields, every one of them accounted for.

    Raises:
        CheckpointError: a field is missing, unknown or of the wrong kind; the field is named.
    """
    if not isinstance(fields, Mapping):
        raise CheckpointError(f"{where} is a {type(fields).__name__}; expected a dict with {', '.join(_SIZES)}.")
    if missing := [name for name in _SIZES if name not in fields]:
        got = ", ".join(map(str, fields)) or "nothing"
        raise CheckpointError(
            f"{where} lacks {', '.join(missing)} (it has {got}); the model cannot be rebuilt without."
        )
    if unknown := [str(name) for name in fields if name not in (*_SIZES, *_NO_EFFECT, "bias")]:
        raise CheckpointError(
            f"{where} has {', '.join(unknown)}, which GPT-2 as nanoGPT builds it does not have. If the model's forward "
            "differs from nanoGPT's, export it through its own code: `gptexport onnx module.py:factory`."
        )
    bias = fields.get("bias", True)  # checkpoints from before the option have them all
    if not isinstance(bias, bool):
        raise CheckpointError(f"{where}: bias is {bias!r}; expected True or False.")
    with wrong_values_in(where):
        return GPTConfig(**{name: fields[name] for name in _SIZES}, bias=bias, gelu=gelu, tied=tied)


def training(payload: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, int | float]:
    """The numbers among the named entries: plain ones, or tensors that hold one."""
    values = {name: payload.get(name) for name in names}
    scalars = {name: v.item() if isinstance(v, torch.Tensor) and v.numel() == 1 else v for name, v in values.items()}
    return {name: v for name, v in scalars.items() if isinstance(v, int | float) and not isinstance(v, bool)}
