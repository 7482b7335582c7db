"""The formats that are read, a line each: by what holds them, and by what their .pt holds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptexport.checkpoints.formats import (
    build_nanogpt,
    huggingface,
    huggingface_llama,
    huggingface_llama_config,
    huggingface_neox,
    litgpt,
    llama2c,
    llmc,
    llms_from_scratch,
    llms_from_scratch_llama,
    minimind,
    nanochat,
    nanogpt,
    state_dict,
)
from gptexport.checkpoints.formats.huggingface_config import read_json
from gptexport.checkpoints.payload import state_of
from gptexport.checkpoints.torch_file import TorchFile
from gptexport.checkpoints.types import Stored

Choices = Mapping[str, Any]  # what the file may not say, by the name of the assumption


def _huggingface(folder: Path) -> Stored:
    fields = read_json(folder / "config.json")
    model_type = fields.get("model_type")
    if isinstance(model_type, str) and model_type in huggingface_llama_config.MODEL_TYPES:
        return huggingface_llama.read(folder, fields)
    if model_type == huggingface_neox.MODEL_TYPE:
        return huggingface_neox.read(folder, fields)
    return huggingface.read(folder)


def _llms_from_scratch(file: TorchFile, path: Path, choices: Choices) -> Stored:
    state = state_of(file.payload)
    of_gpt2 = any(str(name).endswith("pos_emb.weight") for name in state)
    reader = llms_from_scratch.read if of_gpt2 else llms_from_scratch_llama.read
    return reader(state, path, n_head=choices.get("n_head"))


CONTAINERS: dict[str, Callable[[Path], Stored]] = {
    "huggingface": _huggingface,
    "litgpt": litgpt.read,
    "llm.c": llmc.read,
}
PAYLOADS: dict[str, Callable[[TorchFile, Path, Choices], Stored]] = {
    "nanogpt": lambda file, path, _: nanogpt.read(file.payload, path),
    "build-nanogpt": lambda file, path, _: build_nanogpt.read(file.payload, path, config_globals=file.config_globals),
    "llama2.c": lambda file, path, _: llama2c.read(file.payload, path),
    "nanochat": lambda file, path, _: nanochat.read(state_of(file.payload), path),
    "litgpt": lambda _, path, __: litgpt.read(path.parent),
    "llms-from-scratch": _llms_from_scratch,
    "minimind": lambda file, path, choices: minimind.read(state_of(file.payload), path, n_head=choices.get("n_head")),
    "state-dict": lambda file, path, choices: state_dict.read(
        state_of(file.payload), path, n_head=choices.get("n_head")
    ),
}
