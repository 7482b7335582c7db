"""nanochat's checkpoints: `base_checkpoints/d12/model_003750.pt`, weights alone, and `meta_003750.json` beside them.

The model changed several times and nothing in the files says which code trained it, so the names and shapes of the
weights tell. Base, SFT and RL checkpoints are alike. Tables are padded to a multiple of 64 rows, which are cut off.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import nanochat
from gptexport.architectures.nanochat import NanochatConfig
from gptexport.checkpoints.formats.huggingface_config import read_json
from gptexport.checkpoints.names import clean_state_dict
from gptexport.checkpoints.sizes import shape_of
from gptexport.checkpoints.types import AssumptionSource, Stored
from gptexport.errors import CheckpointError, TokenizerError, UnknownCheckpointError
from gptexport.tokenizers.tiktoken_pickle import special_tokens_of
from gptexport_runtime.contract.manifest import TextEntry

FORMAT = "nanochat"
TOKENIZER = "tokenizer.pkl"
_NEEDED = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
_CHAT = ("user_start", "user_end", "assistant_start", "assistant_end")
_PADDED_TO = 64
_WTE = "transformer.wte.weight"
_EXPERIMENTS = ("bigram_embed", "bigram_lambdas", "value_embed.", "value_embed_A", "value_embed_B", "v0_lambdas")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the training code of a time computed."""

    since: str  # the day of the commit that brought it
    rope_base: float
    qk_gain: float = 1.0
    value_gain: float = 2.0  # of the gate of the value embeddings, where there are any
    short_window: tuple[int, int]  # an S of the pattern is a text's length over the first, rounded up to the second
    softcap: float = 15.0
    unsure: tuple[str, ...] = ()  # what changed meanwhile and left no trace in the files


FIRST = Generation(since="2025-10-13", rope_base=1e4, short_window=(2, 1))
LAMBDAS = Generation(since="2026-01-11", rope_base=1e4, short_window=(2, 1))
VALUES = Generation(since="2026-01-16", rope_base=1e4, short_window=(2, 1), unsure=("softcap",))  # 20 from 2026-03-02
GATES = Generation(since="2026-03-09", rope_base=1e5, qk_gain=1.15, value_gain=3.0, short_window=(3, 128))
SMEAR = Generation(since="2026-03-14", rope_base=1e5, qk_gain=1.2, value_gain=3.0, short_window=(4, 128))


def read(state: Mapping[Any, Any], path: Path) -> Stored:
    """What a nanochat checkpoint says, its weights still mapped.

    Raises:
        CheckpointError: meta_*.json is missing, damaged, or lacks a field or has one that gptexport does not know.
        UnknownCheckpointError: the weights are those of one of its experiments.
    """
    weights, problems = clean_state_dict(state)
    meta_path = _meta_beside(path)
    meta = read_json(meta_path)
    fields = _model_config(meta, meta_path)
    generation = generation_of(weights, path)
    config = _config(fields, weights, generation, meta_path)
    tokenizer = _tokenizer(path)
    text, untold = _text(tokenizer, config.vocab_size)
    sure: AssumptionSource = "format" if "softcap" in generation.unsure else "checkpoint"
    return Stored(
        format=FORMAT,
        path=path,
        architecture=nanochat.ARCHITECTURE,
        config=config,
        assumed={"softcap": sure},
        weights=_without_padding(weights, config, path),
        files=(path, meta_path),
        tokenizer=tokenizer,
        text=text,
        training={name: meta[name] for name in ("step", "val_bpb") if isinstance(meta.get(name), int | float)},
        problems=problems,
        notes=(f"built as nanochat's code of {generation.since} and later, which the weights tell", *untold),
    )


def generation_of(weights: Mapping[str, torch.Tensor], path: Path) -> Generation:
    """Which code these weights were trained with.

    Raises:
        UnknownCheckpointError: none that left checkpoints that gptexport reads.
    """
    if strange := sorted(name for name in weights if name.startswith(_EXPERIMENTS)):
        raise UnknownCheckpointError(
            f"{path}: a nanochat experiment, with {', '.join(strange[:3])}, which its code had for a few days of "
            "January 2026. gptexport does not build it: export it through its own code: gptexport onnx "
            "module.py:factory."
        )
    if "smear_gate.weight" in weights:
        return SMEAR
    gates = [weight for name, weight in weights.items() if name.endswith(".attn.ve_gate.weight") and weight.ndim == 2]
    if gates:
        channels = gates[0].shape[1]
        if channels not in (12, 32):
            raise UnknownCheckpointError(
                f"{path}: the gates of nanochat's value embeddings read {channels} channels; expected 12 or 32."
            )
        return GATES if channels == 12 else VALUES
    if any(name.startswith("value_embeds.") for name in weights):
        raise UnknownCheckpointError(f"{path}: a nanochat experiment, value embeddings without gates.")
    return LAMBDAS if "resid_lambdas" in weights else FIRST


def _config(
    fields: Mapping[str, Any], weights: Mapping[str, torch.Tensor], generation: Generation, where: Path
) -> NanochatConfig:
    gates = [weight.shape[1] for name, weight in weights.items() if name.endswith(".attn.ve_gate.weight")]
    try:
        return NanochatConfig(
            block_size=fields["sequence_len"],
            **{name: fields[name] for name in _NEEDED if name != "sequence_len"},
            windows=_windows(fields, generation, where),
            rope_base=generation.rope_base,
            qk_gain=generation.qk_gain,
            lambdas="resid_lambdas" in weights,
            value_channels=gates[0] if gates else 0,
            value_gain=generation.value_gain,
            smear="smear_gate.weight" in weights,
            backout="backout_lambda" in weights,
            softcap=generation.softcap,
        )
    except ValueError as error:
        message = str(error).replace("block_size", "sequence_len")
        raise CheckpointError(f"{where}: model_config: {message}.") from error


def _windows(fields: Mapping[str, Any], generation: Generation, where: Path) -> tuple[int | None, ...]:
    """How many keys a query sees, its own included, per letter of the pattern: FA3's window of N is N before it."""
    pattern, length = fields.get("window_pattern", "L"), fields["sequence_len"]
    if not isinstance(pattern, str) or not re.fullmatch("[SLsl]{1,999}", pattern):
        raise CheckpointError(f"{where}: model_config: window_pattern is {pattern!r}; expected letters S and L.")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise CheckpointError(f"{where}: model_config: sequence_len is {length!r}; expected a positive integer.")
    share, multiple = generation.short_window
    short = length // share if multiple == 1 else -(-length // share // multiple) * multiple
    return tuple(short + 1 if letter in "Ss" else None for letter in pattern)


def _without_padding(
    weights: Mapping[str, torch.Tensor], config: NanochatConfig, path: Path
) -> dict[str, torch.Tensor]:
    """The tables without the rows that pad them, as views."""
    V = config.vocab_size
    padded, _ = shape_of(weights, _WTE, path, dims=2)
    if padded not in (V, -(-V // _PADDED_TO) * _PADDED_TO):
        return dict(weights)  # another vocabulary than the config's, which the comparison with it tells
    tables = ("transformer.wte.", "lm_head.", "value_embeds.")
    return {
        name: weight[:V] if name.startswith(tables) and weight.ndim == 2 and weight.shape[0] == padded else weight
        for name, weight in weights.items()
    }


def _model_config(meta: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    fields = meta.get("model_config")
    if not isinstance(fields, dict):
        raise CheckpointError(f"{where}: no model_config of nanochat's; it has {', '.join(meta) or 'nothing'}.")
    if missing := [name for name in _NEEDED if name not in fields]:
        raise CheckpointError(f"{where}: model_config lacks {', '.join(missing)}; the model cannot be rebuilt without.")
    if unknown := [name for name in fields if name not in (*_NEEDED, "window_pattern")]:
        raise CheckpointError(
            f"{where}: model_config has {', '.join(unknown)}, which nanochat as gptexport knows it does not have. If "
            "your forward differs, export it through its own code: `gptexport onnx module.py:factory`."
        )
    return fields


def _meta_beside(path: Path) -> Path:
    """`meta_003750.json` of `model_003750.pt`; of a file with another name the only one in its folder."""
    step = re.fullmatch(r"model_(\d+)\.pt", path.name)
    named = path.with_name(f"meta_{step.group(1)}.json") if step else None
    if named is not None and named.is_file():
        return named
    others = sorted(path.parent.glob("meta_*.json"))
    if named is None and len(others) == 1:
        return others[0]
    expected = named.name if named is not None else "one meta_*.json"
    raise CheckpointError(
        f"{path}: {expected} is not beside it, and the weights of nanochat do not say n_head or sequence_len. Copy it "
        "from the folder where nanochat saved both."
    )


def _tokenizer(path: Path) -> Path | None:
    """`tokenizer/tokenizer.pkl` of nanochat's base folder, three levels up, or beside the checkpoint."""
    for folder in (path.parent, path.resolve().parent.parent.parent / "tokenizer"):
        if (folder / TOKENIZER).is_file():
            return folder / TOKENIZER
    return None


def _text(tokenizer: Path | None, vocab_size: int) -> tuple[TextEntry, tuple[str, ...]]:
    """nanochat's documents begin with bos, its answers end at assistant_end; and a note where that is not known."""
    if tokenizer is None:
        return TextEntry(), ()
    try:
        ids = special_tokens_of(tokenizer)
    except TokenizerError:
        return TextEntry(), ()  # whoever puts it into the bundle tells
    bos, *chat = (ids.get(f"<|{name}|>", vocab_size) for name in ("bos", *_CHAT))
    if bos >= vocab_size:
        return TextEntry(), (f"{tokenizer} has no <|bos|> that the model has: texts are not begun with it",)
    if max(chat) >= vocab_size:
        return TextEntry(eos_token_ids=(bos,), bos_token_id=bos, before_prompt=(bos,)), ()
    user_start, user_end, assistant_start, assistant_end = chat
    entry = TextEntry(
        eos_token_ids=(assistant_end, bos),
        bos_token_id=bos,
        before_prompt=(bos,),
        before_message=(bos, user_start),
        after_message=(user_end, assistant_start),
    )
    return entry, ()
