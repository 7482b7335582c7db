"""Recognise what an opened .pt holds, by its keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from gptexport.checkpoints.names import strip_wrappers
from gptexport.checkpoints.recognise import litgpt
from gptexport.checkpoints.types import Foreign

_OWN_CODE = "Export it through its own code: gptexport onnx module.py:factory"


def recognise_payload(payload: Any, path: Path) -> Literal["nanogpt", "build-nanogpt"] | Foreign:
    """The format of what `torch.save` wrote, or what it is and what to do with it."""
    if not isinstance(payload, Mapping):
        what = f"a saved {type(payload).__name__}, not a dict with a model in it"
        return Foreign(format="unknown", what=what, advice="Save the checkpoint as nanoGPT's train.py does")
    if isinstance(payload.get("model"), Mapping):
        if "model_args" in payload:
            return "nanogpt"
        foreign = _foreign_weights(payload["model"])
        if foreign is None and "config" in payload:
            return "build-nanogpt"
        if "code" in payload and "step" in payload:
            return _modded()
        return foreign or _weights_alone(payload["model"], path)
    return _foreign_weights(payload) or _weights_alone(payload, path)


def _foreign_weights(state: Mapping[Any, Any]) -> Foreign | None:
    names = {strip_wrappers(str(name)) for name in state}

    def has(part: str) -> bool:
        return any(part in name for name in names)

    if "resid_lambdas" in names or has(".attn.c_q.weight"):
        advice = f"The architecture (RMSNorm, RoPE, ReLU²) is not GPT-2's. {_OWN_CODE}"
        return Foreign(format="nanochat", what="the weights of a nanochat model", advice=advice)
    if has(".attn.attn.weight") or has(".attn.qkv.weight") or has(".norm_1.weight"):
        return litgpt()
    if has(".qkv_w") or has("qkvo_w") or "scalars" in names or has("x0_lambdas") or has(".attn.c_q") or has(".lambdas"):
        return _modded()
    return None


def _modded() -> Foreign:
    what = "a checkpoint of modded-nanogpt"
    return Foreign(format="modded-nanogpt", what=what, advice=f"Its architecture is not GPT-2's. {_OWN_CODE}")


def _weights_alone(state: Mapping[Any, Any], path: Path) -> Foreign:
    names = [strip_wrappers(str(name)) for name in state]
    if any(name.endswith("h.0.attn.c_attn.weight") for name in names):
        folder = path.parent
        advice = (
            f"Give the folder with its config.json: {folder}"
            if (folder / "config.json").is_file()
            else "They do not say n_head. Load them in a module.py and export that: gptexport onnx module.py:factory"
        )
        return Foreign(format="state-dict", what="GPT-2 weights alone, a state_dict without a config", advice=advice)
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        what = f"a state_dict of a model that is not GPT-2 ({some})"
        return Foreign(format="state-dict", what=what, advice=_OWN_CODE)
    keys = ", ".join(map(str, list(state)[:8])) or "none"
    advice = "Expected model and model_args (nanoGPT) or model and config (build-nanogpt)"
    return Foreign(format="unknown", what=f"a dict that is no checkpoint gptexport knows (keys: {keys})", advice=advice)
