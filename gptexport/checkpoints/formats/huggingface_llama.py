"""A Hugging Face folder of Llama, Mistral, Qwen2 or Qwen3: config.json with safetensors or pytorch_model.bin."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import llama
from gptexport.checkpoints.formats.huggingface import read_weights
from gptexport.checkpoints.formats.huggingface_llama_config import config_of
from gptexport.checkpoints.formats.huggingface_text import text_of
from gptexport.checkpoints.formats.llama_names import EMBEDDING, HEAD
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.types import Stored
from gptexport.errors import CheckpointError

FORMAT = "huggingface"
_TABLES = re.compile(r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)")  # of transformers before 4.32


def read(folder: Path, fields: Mapping[str, Any]) -> Stored:
    """What a folder says whose config.json holds `fields`, its weights still mapped.

    Raises:
        CheckpointError: config.json asks for something that gptexport does not do, a file is missing or damaged, or a
            stored lm_head differs from embed_tokens although config.json ties them.
    """
    path = folder / "config.json"
    config = config_of(fields, path)
    files, state = read_weights(folder)
    cleaned, problems = clean_state_dict(state)
    weights = {_prefixed(name): weight for name, weight in cleaned.items() if not _TABLES.fullmatch(name)}
    text = text_of(folder, fields, config.vocab_size)
    return Stored(
        format=FORMAT,
        path=folder,
        architecture=llama.ARCHITECTURE,
        config=replace(config, tied=_tie(config.tied, weights, folder)),
        weights=weights,
        files=(path, *files),
        tokenizer=text.tokenizer,
        text=text.ids,
        problems=problems,
        notes=text.notes,
    )


def _prefixed(name: str) -> str:
    """LlamaModel stores `norm.weight`, LlamaForCausalLM `model.norm.weight`: the latter for both."""
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _tie(tied: bool, weights: dict[str, torch.Tensor], folder: Path) -> bool:
    """Whether lm_head is embed_tokens, with lm_head put into `weights` where tying stands for storing it."""
    same = is_tied(weights, EMBEDDING, HEAD)
    if not tied or (HEAD in weights and same):
        return same
    if HEAD in weights and EMBEDDING in weights:
        raise CheckpointError(
            f"{folder}: config.json says tie_word_embeddings, but the stored lm_head.weight differs from embed_tokens; "
            "one of them would be lost. If the head was trained on its own, set tie_word_embeddings to false there."
        )
    for there, absent in ((EMBEDDING, HEAD), (HEAD, EMBEDDING)):  # safetensors' save_model keeps either
        if there in weights:
            weights.setdefault(absent, weights[there])
    return True
