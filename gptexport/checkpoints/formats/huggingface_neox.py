"""A Hugging Face folder of GPT-NeoX, such as Pythia's: config.json with safetensors or pytorch_model.bin.

q, k and v are one projection, head by head: a head's q, its k, its v. Here they are all q, all k, all v.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import neox
from gptexport.architectures.neox import NeoxConfig
from gptexport.checkpoints.formats.huggingface import read_weights
from gptexport.checkpoints.formats.huggingface_config import (
    ACTIVATIONS,
    architectures_of,
    check_own_code,
    check_refused,
)
from gptexport.checkpoints.formats.huggingface_rope import Names, rope_of
from gptexport.checkpoints.formats.huggingface_text import text_of
from gptexport.checkpoints.formats.llama_names import renamed
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.types import Stored
from gptexport.errors import CheckpointError, UnknownCheckpointError

FORMAT = "huggingface"
MODEL_TYPE = "gpt_neox"
_SIZES = {  # transformers' name -> ours
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
}
_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "vocab_size": 50432,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
}
_BLOCK = r"gpt_neox\.layers\.(\d+)"
_NAMES = {
    r"gpt_neox\.embed_in\.weight": "transformer.wte.weight",
    r"(?:embed_out|lm_head)\.weight": "lm_head.weight",
    r"gpt_neox\.final_layer_norm\.(weight|bias)": r"transformer.ln_f.\1",
    rf"{_BLOCK}\.input_layernorm\.(weight|bias)": r"transformer.h.\1.ln_1.\2",
    rf"{_BLOCK}\.post_attention_layernorm\.(weight|bias)": r"transformer.h.\1.ln_2.\2",
    rf"{_BLOCK}\.attention\.query_key_value\.(weight|bias)": r"transformer.h.\1.attn.c_attn.\2",
    rf"{_BLOCK}\.attention\.dense\.(weight|bias)": r"transformer.h.\1.attn.c_proj.\2",
    rf"{_BLOCK}\.mlp\.dense_h_to_4h\.(weight|bias)": r"transformer.h.\1.mlp.c_fc.\2",
    rf"{_BLOCK}\.mlp\.dense_4h_to_h\.(weight|bias)": r"transformer.h.\1.mlp.c_proj.\2",
}
_BUFFERS = re.compile(_BLOCK + r"\.attention\.(bias|masked_bias|rotary_emb\.(inv_freq|cos_cached|sin_cached))")
_QKV = re.compile(r"transformer\.h\.\d+\.attn\.c_attn\.(weight|bias)")
_WTE, _HEAD = "transformer.wte.weight", "lm_head.weight"


def read(folder: Path, fields: Mapping[str, Any]) -> Stored:
    """What a folder says whose config.json holds `fields`; q, k and v are copied, all else stays mapped.

    Raises:
        CheckpointError: config.json asks for something that gptexport does not do, or a file is missing or damaged.
    """
    path = folder / "config.json"
    config = config_of(fields, path)
    files, state = read_weights(folder)
    cleaned, problems = clean_state_dict(state)
    weights = renamed({name: w for name, w in cleaned.items() if not _BUFFERS.fullmatch(name)}, _NAMES)
    weights = {name: _one_after_another(name, w, config.n_head) for name, w in weights.items()}
    for there, absent in ((_WTE, _HEAD), (_HEAD, _WTE)):  # safetensors' save_model keeps either
        if config.tied and there in weights:
            weights.setdefault(absent, weights[there])
    if config.tied and not is_tied(weights):
        raise CheckpointError(f"{folder}: config.json says tie_word_embeddings, but the stored head is another.")
    text = text_of(folder, fields, config.vocab_size)
    return Stored(
        format=FORMAT,
        path=folder,
        architecture=neox.ARCHITECTURE,
        config=replace(config, tied=is_tied(weights)),
        assumed={"gelu": "checkpoint" if "hidden_act" in fields else "format"},
        weights=weights,
        files=(path, *files),
        tokenizer=text.tokenizer,
        text=text.ids,
        problems=problems,
        notes=text.notes,
    )


def config_of(fields: Mapping[str, Any], path: Path) -> NeoxConfig:
    """The NeoxConfig that computes what transformers' GPTNeoXForCausalLM computes.

    Raises:
        CheckpointError: a field has a value of the wrong kind, or asks for something that gptexport does not do.
        UnknownCheckpointError: it is a model without the language model's head.
    """
    architectures = architectures_of(fields, path)
    if architectures and not {"GPTNeoXForCausalLM", "GPTNeoXModel"} & set(architectures):
        raise UnknownCheckpointError(
            f"{path}: architectures is {architectures!r}, a model without the language model's head; expected "
            "GPTNeoXForCausalLM."
        )
    check_own_code(fields, "GPT-NeoX", path)
    check_refused(fields, path)
    values = {**_DEFAULTS, **fields}
    if not isinstance(values["hidden_act"], str) or values["hidden_act"] not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act is {values['hidden_act']!r}; gptexport does the two GELUs: {', '.join(ACTIVATIONS)}."
        )
    for name in ("tie_word_embeddings", "use_parallel_residual", "attention_bias"):
        if not isinstance(values[name], bool):
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; expected true or false.")
    rope = rope_of(values, path, names=Names(base="rotary_emb_base", share="rotary_pct"), share=0.25)
    try:
        sizes = {ours: values[theirs] for theirs, ours in _SIZES.items()}
        return NeoxConfig(
            **sizes,
            attn_bias=values["attention_bias"],
            rotary_size=int(sizes["n_embd"] // sizes["n_head"] * rope.share),
            rope_base=rope.base,
            rope_scaling=rope.scaling,
            parallel=values["use_parallel_residual"],
            gelu=ACTIVATIONS[values["hidden_act"]],
            tied=values["tie_word_embeddings"],
            norm_eps=values["layer_norm_eps"],
        )
    except (ValueError, TypeError, ArithmeticError) as error:  # of the rotary size, by sizes not checked yet
        message = str(error)
        for theirs, ours in (*_SIZES.items(), ("layer_norm_eps", "norm_eps"), ("rotary_emb_base", "rope_base")):
            message = message.replace(ours, theirs)
        raise CheckpointError(f"{path}: {message}.") from error


def _one_after_another(name: str, weight: torch.Tensor, n_head: int) -> torch.Tensor:
    """Rows of a joined projection: from head by head to all q, all k, all v."""
    if not _QKV.fullmatch(name) or weight.shape[0] % (3 * n_head):
        return weight
    return weight.reshape(n_head, 3, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)
