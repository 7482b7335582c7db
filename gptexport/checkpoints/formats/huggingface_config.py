"""transformers' GPT2Config, field by field: what changes the result is honoured or refused by name."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.errors import CheckpointError, UnknownCheckpointError

ALIASES = {  # GPT2Config.attribute_map
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ACTIVATIONS: dict[str, str] = {  # of transformers' ACT2FN, those that are one of the two GELUs in float32
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu": "erf",
    "gelu_python": "erf",
}
DEFAULTS: dict[str, Any] = {  # GPT2Config's, for the fields that change the result
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
REFUSED = {  # field -> why, when it is set to anything
    "add_cross_attention": "cross-attention blocks",
    "quantization_config": "quantized weights; save the model dequantized",
    "pruned_heads": "pruned attention heads",
    "per_layer_config": "layers that differ from each other",
}
# Of no effect on float32 logits in eval mode: the dropouts, initializer_range, summary_* (another head's), use_cache,
# token ids, n_ctx, dtype and torch_dtype, and reorder_and_upcast_attn, which reorders roundings in half precision.
MAX_JSON = 64 << 20  # bytes; the index of a model of a million weights is smaller
MAX_FLOAT = sys.float_info.max  # JSON's integers have no end
_ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        CheckpointError: it is missing, truncated or no object.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    size = path.stat().st_size
    if size > MAX_JSON:
        raise CheckpointError(f"{path}: the file has {size:,} bytes; expected at most {MAX_JSON:,} of JSON.")
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("version https://git-lfs.github.com/spec/"):
            raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself. Fetch it: git lfs pull.")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the file ({size:,} bytes) is truncated or corrupt JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got a {type(value).__name__}.")
    return value


def check_architecture(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse what is not transformers' own GPT-2.

    Raises:
        UnknownCheckpointError: it is another model; it is named.
    """
    model_type, architectures = fields.get("model_type"), architectures_of(fields, path)
    if model_type not in (None, "gpt2"):
        raise UnknownCheckpointError(
            f"{path}: a Hugging Face checkpoint of model_type {model_type!r}; gptexport reads 'gpt2'. "
            "Another GPT can be exported through its own code: `gptexport onnx module.py:factory`."
        )
    if architectures and not any(name in _ARCHITECTURES for name in architectures):
        raise UnknownCheckpointError(
            f"{path}: architectures is {architectures!r}, a model without GPT-2's language model head; expected one of "
            f"{', '.join(_ARCHITECTURES)}."
        )
    if model_type is None and not architectures and not {"n_embd", "n_layer", "n_head"} & set(fields):
        raise UnknownCheckpointError(f"{path}: no model_type, and no field of GPT-2's; gptexport reads 'gpt2'.")
    check_own_code(fields, "GPT-2", path)


def architectures_of(fields: Mapping[str, Any], path: Path) -> list[str]:
    """The classes that a config names; empty: it names none.

    Raises:
        CheckpointError: they are no list of names.
    """
    architectures = fields.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path}: architectures is {architectures!r}; expected a list of names.")
    return architectures


def check_own_code(fields: Mapping[str, Any], title: str, path: Path) -> None:
    """Refuse a repository whose forward is its own.

    Raises:
        CheckpointError: auto_map names it.
    """
    custom = fields.get("auto_map")
    if isinstance(custom, Mapping) and (names := [name for name in custom if name.startswith("AutoModel")]):
        raise CheckpointError(
            f"{path}: auto_map names the repository's own code for {', '.join(names)}, which gptexport does not run. "
            f"If its forward is {title}'s, remove auto_map; else export it through its own code: gptexport onnx "
            "module.py:factory."
        )


def check_refused(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse what no reader of a Hugging Face folder does.

    Raises:
        CheckpointError: such a field is set; it is named.
    """
    for name, reason in REFUSED.items():
        if fields.get(name):
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}: {reason}, which gptexport does not do.")


def config_of(fields: Mapping[str, Any], path: Path) -> GPTConfig:
    """The GPTConfig that computes what transformers' GPT2LMHeadModel computes; `tied` is what the file says.

    Raises:
        CheckpointError: a field has a value of the wrong kind, or asks for something that gptexport does not do.
    """
    check_architecture(fields, path)
    check_refused(fields, path)
    values = {**DEFAULTS, **_canonical(fields, path)}
    activation = values["activation_function"]
    if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: activation_function is {activation!r}; gptexport does the two GELUs: {', '.join(ACTIVATIONS)}."
        )
    for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
        if not isinstance(values[name], bool):
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; expected true or false.")
    epsilon = values["layer_norm_epsilon"]
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < MAX_FLOAT:
        raise CheckpointError(f"{path}: layer_norm_epsilon is {epsilon!r}; expected a positive number.")
    try:
        return GPTConfig(
            block_size=values["n_positions"],
            vocab_size=values["vocab_size"],
            n_layer=values["n_layer"],
            n_head=values["n_head"],
            n_embd=values["n_embd"],
            n_inner=values["n_inner"],
            bias=True,
            gelu=ACTIVATIONS[activation],
            tied=values["tie_word_embeddings"],
            layer_norm_epsilon=float(epsilon),
            scale_attn_weights=values["scale_attn_weights"],
            scale_attn_by_inverse_layer_idx=values["scale_attn_by_inverse_layer_idx"],
        )
    except ValueError as error:
        message = str(error).replace("block_size", "n_positions")
        raise CheckpointError(f"{path}: {message}.") from error


def _canonical(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of DEFAULTS that the file has, under GPT2Config's own names."""
    values = {name: fields[name] for name in DEFAULTS if name in fields}
    for alias, name in ALIASES.items():
        if alias not in fields:
            continue
        if name in values and values[name] != fields[alias]:
            raise CheckpointError(f"{path}: {name} is {values[name]!r} and its alias {alias} is {fields[alias]!r}.")
        values[name] = fields[alias]
    return values
