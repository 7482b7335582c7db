"""Recognise what an opened .pt holds, by its keys."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptexport.checkpoints.formats.llama2c import is_llama2c
from gptexport.checkpoints.names import strip_wrappers
from gptexport.checkpoints.types import Foreign

_OWN_CODE = "Export it through its own code: gptexport onnx module.py:factory"
_STATES = ("model", "state_dict", "model_state_dict")  # where scripts put a state_dict beside other things

# The formats that are read, by a name that only their weights have.
_BY_NAME = (
    ("nanochat", r"transformer\.h\.\d+\.attn\.c_q\.weight"),
    ("litgpt", r"transformer\.h\.\d+\.(attn\.(qkv|attn)|norm_1)\.weight"),
    ("llms-from-scratch", r"trf_blocks\.\d+\.att\..*"),
    ("minimind", r"model\.layers\.\d+\.self_attn\.q_proj\.weight"),
    ("state-dict", r"(.*\.)?h\.\d+\.attn\.c_attn\.weight"),
)
_MODDED = re.compile(r".*(\.qkv_w|qkvo_w|x0_lambdas|\.attn\.c_q|\.lambdas).*|scalars")


def recognise_payload(payload: Any, path: Path) -> str | Foreign:
    """The name of the format that `torch.save` wrote, or what it is and what to do with it."""
    if not isinstance(payload, Mapping):
        what = f"a saved {type(payload).__name__}, not a dict with a model in it"
        return Foreign(format="unknown", what=what, advice="Save the checkpoint as nanoGPT's train.py does")
    if isinstance(payload.get("model"), Mapping) and "model_args" in payload:
        return "llama2.c" if is_llama2c(payload["model_args"]) else "nanogpt"
    if "param_groups" in payload and "state" in payload:
        what = "an optimizer's state, such as nanochat's optim_*.pt"
        return Foreign(format="optimizer", what=what, advice="The model is in a file beside it")
    state = state_of(payload)
    if state is not payload and "code" in payload and "step" in payload:
        return _modded()
    names = [strip_wrappers(str(name)) for name in state]
    for name, pattern in _BY_NAME:
        if any(re.fullmatch(pattern, weight) for weight in names):
            return _with_a_config(name, payload, path)
    if any(_MODDED.fullmatch(name) for name in names):
        return _modded()
    return _nothing_known(state, names)


def state_of(payload: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state_dict in what was saved: beside an optimizer's, in Lightning's `state_dict`, or the payload itself."""
    for name in _STATES:
        if isinstance(payload.get(name), Mapping):
            found: Mapping[Any, Any] = payload[name]
            return found
    return payload


def _with_a_config(name: str, payload: Mapping[Any, Any], path: Path) -> str | Foreign:
    """GPT-2's and Llama's names alone do not say it all: a config may be in the file, or beside it."""
    if name == "state-dict" and "config" in payload and state_of(payload) is not payload:
        return "build-nanogpt"
    if name in ("state-dict", "minimind") and (path.parent / "config.json").is_file():
        what = "the weights of a Hugging Face folder"
        return Foreign(format="state-dict", what=what, advice=f"Give the folder with its config.json: {path.parent}")
    return name


def _modded() -> Foreign:
    what = "a checkpoint of modded-nanogpt"
    return Foreign(format="modded-nanogpt", what=what, advice=f"Its architecture is not GPT-2's. {_OWN_CODE}")


def _nothing_known(state: Mapping[Any, Any], names: list[str]) -> Foreign:
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        what = f"a state_dict of a model that gptexport does not know ({some})"
        return Foreign(format="state-dict", what=what, advice=_OWN_CODE)
    keys = ", ".join(map(str, list(state)[:8])) or "none"
    advice = "Expected model and model_args (nanoGPT), model and config (build-nanogpt), or a state_dict"
    return Foreign(format="unknown", what=f"a dict that is no checkpoint gptexport knows (keys: {keys})", advice=advice)
