"""`model_config.yaml` of LitGPT: what is common to the models that gptexport builds, every field accounted for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.architectures.rotary import Linear, Llama3, Scaling
from gptexport.checkpoints.formats.huggingface_config import MAX_JSON
from gptexport.checkpoints.sizes import positive_integer, positive_number
from gptexport.errors import CheckpointError, UnknownCheckpointError
from gptexport_runtime.files import read_small

Fields = Mapping[str, Any]
DEFAULTS: dict[str, Any] = {  # litgpt's Config, for the fields that change the result
    "name": "",
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "norm_qk": False,
    "norm_qk_type": "default",
    "parallel_residual": True,
    "attn_bias": False,
    "bias": True,
    "rope_base": 10000,
    "rotary_percentage": 0.25,
    "rope_condense_ratio": 1,
    "rope_adjustments": None,
    "rope_interleave": False,
    "sliding_window_size": None,
    "sliding_window_indices": None,
    "attention_scores_scalar": None,
    "mlp_class_name": "GptNeoxMLP",
    "gelu_approximate": "none",
}
_ABSENT: dict[str, Any] = {  # fields that must be as by default, or not there at all
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "shared_attention_norm": False,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "scale_embeddings": False,
    "lm_head_bias": False,
    "latent_attention": None,
    "rope_local_base_freq": None,
    "norm_1": True,
    "norm_2": True,
    "n_expert": 0,
}
_NEEDED = ("block_size", "n_layer", "n_head", "n_embd", "padded_vocab_size")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain values that must hold a mapping.

    Raises:
        CheckpointError: it is missing, damaged or no mapping, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs PyYAML: `pip install 'gptexport[litgpt]'`.") from error
    try:
        value = yaml.safe_load(read_small(path, MAX_JSON).decode("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; LitGPT saves it beside lit_model.pth, which does not say what the model is."
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: the file is truncated or corrupt YAML ({reason}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a mapping, got a {type(value).__name__}.")
    return value


def check(fields: Fields, required: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that gptexport does not build.

    Args:
        required: the fields for which it builds one value, and that value.

    Raises:
        CheckpointError: a field has a value of the wrong kind.
        UnknownCheckpointError: fields ask for what is not built; all of them are named.
    """
    for name in ("norm_qk", "attn_bias", "bias", "rope_interleave", "parallel_residual"):
        if not isinstance(fields[name], bool):
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}; expected true or false.")
    wrong = [f"{name} {fields[name]!r} (not {value!r})" for name, value in required.items() if fields[name] != value]
    wrong += [f"{name} {fields[name]!r}" for name, value in _ABSENT.items() if fields.get(name, value) != value]
    if "Gemma" in str(fields["name"]) or "OLMo" in str(fields["name"]):
        wrong.append(f"name {fields['name']!r} (whose norms are others)")
    scalar, size = fields["attention_scores_scalar"], sizes_of(fields, path)["head_size"]
    if scalar not in (None, size):
        wrong.append(f"attention_scores_scalar {scalar!r} (not head_size {size})")
    if wrong:
        raise UnknownCheckpointError(
            f"{path}: a LitGPT model that gptexport does not build, by its {', '.join(wrong)}. Export it through its "
            "own code: `gptexport onnx module.py:factory`."
        )


def sizes_of(fields: Fields, path: Path) -> dict[str, Any]:
    """block_size, vocab_size, n_layer, n_head, n_kv_head, n_embd and head_size.

    Raises:
        CheckpointError: one is missing, or is no size.
    """
    if missing := [name for name in _NEEDED if fields.get(name) is None]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; the model cannot be rebuilt without.")
    sizes = {name: positive_integer(fields[name], name, path) for name in _NEEDED}
    sizes["vocab_size"] = sizes.pop("padded_vocab_size")
    width, heads = sizes["n_embd"], sizes["n_head"]
    if fields.get("head_size") is None and width % heads:
        raise CheckpointError(f"{path}: n_embd {width} is not a multiple of n_head {heads}.")
    found = {"head_size": fields.get("head_size") or width // heads, "n_kv_head": fields.get("n_query_groups") or heads}
    return sizes | {name: positive_integer(value, name, path) for name, value in found.items()}


def scaling_of(fields: Fields, path: Path) -> Scaling | None:
    """What stretches the rotary frequencies.

    Raises:
        CheckpointError: a number of it is wrong; UnknownCheckpointError: gptexport does not do it.
    """
    ratio, adjusted = fields["rope_condense_ratio"], fields["rope_adjustments"]
    if adjusted is None:
        return None if ratio == 1 else Linear(factor=positive_number(ratio, "rope_condense_ratio", path))
    names = set(adjusted) if isinstance(adjusted, Mapping) else set()
    if ratio == 1 and names == {"factor"}:
        return Linear(factor=positive_number(adjusted["factor"], "factor", path))
    if ratio == 1 and names == {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}:
        return Llama3(
            factor=positive_number(adjusted["factor"], "factor", path),
            low_freq_factor=positive_number(adjusted["low_freq_factor"], "low_freq_factor", path),
            high_freq_factor=positive_number(adjusted["high_freq_factor"], "high_freq_factor", path),
            original_block_size=positive_integer(adjusted["original_max_seq_len"], "original_max_seq_len", path),
        )
    raise UnknownCheckpointError(
        f"{path}: rope_adjustments is {adjusted!r} and rope_condense_ratio {ratio!r}; gptexport does a factor alone, "
        "or Llama 3's four."
    )
