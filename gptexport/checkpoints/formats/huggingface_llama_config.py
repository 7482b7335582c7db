"""transformers' LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config: nothing is ignored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport.architectures.llama import LlamaConfig
from gptexport.checkpoints.formats.huggingface_config import architectures_of, check_own_code, check_refused
from gptexport.checkpoints.formats.huggingface_rope import rope_of
from gptexport.errors import CheckpointError, UnknownCheckpointError

Fields = Mapping[str, Any]
Windows = tuple[int | None, ...]

_SIZES = {  # transformers' name -> ours
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "n_embd",
    "head_dim": "head_size",
    "intermediate_size": "n_inner",
}
_MANY = 10_000  # layers: more is a damaged file


def _mistral_windows(fields: Fields, path: Path) -> Windows:
    window = fields["sliding_window"]
    return () if window is None else (window,)


def _qwen_windows(fields: Fields, path: Path) -> Windows:
    kinds, layers = fields.get("layer_types"), fields["num_hidden_layers"]
    window = fields["sliding_window"] if fields["use_sliding_window"] else None
    if kinds is None:
        first = fields["max_window_layers"]
        return () if window is None else tuple(window if i >= first else None for i in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise CheckpointError(f"{path}: layer_types is {kinds!r}; expected a list of {layers}.")
    if other := sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}):
        raise CheckpointError(f"{path}: layer_types has {', '.join(other)}; gptexport does full and sliding attention.")
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError(f"{path}: layer_types has sliding_attention, but there is no sliding_window in use.")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds) if window else ()


def _no_windows(fields: Fields, path: Path) -> Windows:
    return ()


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """One of transformers' classes: its defaults, and how it differs from the others."""

    name: str  # its class, without ForCausalLM
    defaults: Fields  # for the fields that the file leaves out
    qkv_bias: Callable[[Fields], bool]
    out_bias: Callable[[Fields], bool]
    mlp_bias: Callable[[Fields], bool] = lambda fields: False
    qk_norm: bool = False
    windows: Callable[[Fields, Path], Windows] = _no_windows


_COMMON = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN = {
    **_COMMON,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
MODEL_TYPES: dict[str, ModelType] = {
    "llama": ModelType(
        name="Llama",
        defaults={
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
        qkv_bias=lambda fields: bool(fields["attention_bias"]),
        out_bias=lambda fields: bool(fields["attention_bias"]),
        mlp_bias=lambda fields: bool(fields["mlp_bias"]),
    ),
    "mistral": ModelType(
        name="Mistral",
        defaults={
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        qkv_bias=lambda fields: False,
        out_bias=lambda fields: False,
        windows=_mistral_windows,
    ),
    "qwen2": ModelType(
        name="Qwen2",
        defaults=_QWEN,
        qkv_bias=lambda fields: True,
        out_bias=lambda fields: False,
        windows=_qwen_windows,
    ),
    "qwen3": ModelType(
        name="Qwen3",
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        qkv_bias=lambda fields: bool(fields["attention_bias"]),
        out_bias=lambda fields: bool(fields["attention_bias"]),
        qk_norm=True,
        windows=_qwen_windows,
    ),
}


def config_of(fields: Fields, path: Path) -> LlamaConfig:
    """The LlamaConfig that computes what transformers' class computes; `tied` is what the file says.

    Raises:
        CheckpointError: a field has a value of the wrong kind, or asks for something that gptexport does not do.
        UnknownCheckpointError: it is a model without the language model's head.
    """
    kind = MODEL_TYPES[fields["model_type"]]
    _check_architecture(fields, kind, path)
    check_refused(fields, path)
    values = {**kind.defaults, **fields}
    if values["hidden_act"] not in ("silu", "swish"):
        raise CheckpointError(f"{path}: hidden_act is {values['hidden_act']!r}; gptexport does 'silu'.")
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"):
        if name in values and not isinstance(values[name], bool):
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; expected true or false.")
    layers = values["num_hidden_layers"]
    if not isinstance(layers, int) or not 1 <= layers <= _MANY:
        raise CheckpointError(f"{path}: num_hidden_layers is {layers!r}; expected 1 to {_MANY}.")
    values = _with_heads(values, path)
    rope = rope_of(values, path)
    if rope.share != 1:
        raise CheckpointError(
            f"{path}: partial_rotary_factor is {rope.share!r}; gptexport turns whole heads of a Llama."
        )
    try:
        return LlamaConfig(
            **{ours: values[theirs] for theirs, ours in _SIZES.items()},
            qkv_bias=kind.qkv_bias(values),
            out_bias=kind.out_bias(values),
            mlp_bias=kind.mlp_bias(values),
            qk_norm=kind.qk_norm,
            tied=values["tie_word_embeddings"],
            norm_eps=values["rms_norm_eps"],
            rope_base=rope.base,
            rope_scaling=rope.scaling,
            windows=kind.windows(values, path),
        )
    except ValueError as error:
        message = str(error)
        for theirs, ours in (*_SIZES.items(), ("rms_norm_eps", "norm_eps"), ("rope_theta", "rope_base")):
            message = message.replace(ours, theirs)
        raise CheckpointError(f"{path}: {message}.") from error


def _check_architecture(fields: Fields, kind: ModelType, path: Path) -> None:
    architectures = architectures_of(fields, path)
    if architectures and f"{kind.name}ForCausalLM" not in architectures and f"{kind.name}Model" not in architectures:
        raise UnknownCheckpointError(
            f"{path}: architectures is {architectures!r}, a model without the language model's head; expected "
            f"{kind.name}ForCausalLM."
        )
    check_own_code(fields, kind.name, path)


def _with_heads(values: Fields, path: Path) -> dict[str, Any]:
    """The number of key heads and the size of a head, where they follow from other fields."""
    filled = dict(values)
    if filled["num_key_value_heads"] is None:
        filled["num_key_value_heads"] = filled["num_attention_heads"]
    if filled["head_dim"] is None:
        width, heads = filled["hidden_size"], filled["num_attention_heads"]
        if not all(isinstance(size, int) and size > 0 for size in (width, heads)) or width % heads:
            raise CheckpointError(f"{path}: hidden_size {width!r} is not a multiple of num_attention_heads {heads!r}.")
        filled["head_dim"] = width // heads
    return filled
