"""A Hugging Face GPT-2 folder: config.json with safetensors or pytorch_model.bin, whole or in shards.

The linears are stored as Conv1D, (in,out); they are transposed as views, so that the weights stay mapped from the file.
With and without the `transformer.` prefix. Where config.json ties lm_head to wte, one of them may be absent; if both
are stored, they must be equal.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gptexport.architectures import gpt2
from gptexport.checkpoints.formats.huggingface_config import config_of, read_json
from gptexport.checkpoints.formats.huggingface_text import text_of
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.recognise import ADAPTERS, recognise
from gptexport.checkpoints.torch_file import corrupt, read_torch_file
from gptexport.checkpoints.types import Foreign, Stored
from gptexport.errors import CheckpointError
from gptexport_runtime.files import is_file

FORMAT = "huggingface"
OTHER_HEADS = ("multiple_choice_head.", "v_head.")  # of GPT2DoubleHeadsModel, and of trl: they make no logits
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put a state_dict
_CONV1D = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_HEAD, _WTE = "lm_head.weight", "transformer.wte.weight"


def read(folder: Path) -> Stored:
    """What a GPT-2 folder says, its weights still mapped.

    Raises:
        CheckpointError: config.json asks for something that gptexport does not do, a file is missing or damaged, or a
            stored lm_head differs from wte although config.json ties them.
    """
    path = folder / "config.json"
    fields = read_json(path)
    config = config_of(fields, path)
    files, state = read_weights(folder)
    weights, problems = clean_state_dict(state)
    others = [name for name in weights if name.startswith(OTHER_HEADS)]
    weights, collisions = _prefixed({name: weight for name, weight in weights.items() if name not in others})
    weights = {
        name: weight.t() if _CONV1D.match(name) and weight.ndim == 2 else weight for name, weight in weights.items()
    }
    text = text_of(folder, fields, config.vocab_size)
    heads = sorted({name.partition(".")[0] for name in others})
    return Stored(
        format=FORMAT,
        path=folder,
        config=replace(config, tied=_tie(config.tied, weights, folder)),
        architecture=gpt2.ARCHITECTURE,
        assumed={"gelu": "checkpoint" if "activation_function" in fields else "format"},
        weights=weights,
        files=(path, *files),
        tokenizer=text.tokenizer,
        text=text.ids,
        problems=(*problems, *collisions),
        notes=(*(f"{head} is left out: it makes no logits" for head in heads), *text.notes),
    )


def read_weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, torch.Tensor]]:
    """The weight files, and what is in them; in transformers' order of preference, then under any name.

    Raises:
        CheckpointError: there are none, a shard is missing, or a file is damaged.
    """
    named = ("model.safetensors", "pytorch_model.bin")
    for name in (name for file in named for name in (file, f"{file}.index.json")):
        if (folder / name).is_file():
            return _read_one(folder / name)
    indexes = sorted(path for path in folder.glob("*.safetensors.index.json") if path.is_file())
    others = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file() and path.name not in ADAPTERS]
    if len(indexes) == 1 or (not indexes and len(others) == 1):
        return _read_one((indexes or others)[0])
    if others:
        names = ", ".join(path.name for path in others)
        raise CheckpointError(f"{folder}: several weight files ({names}) and no one index.json that says which belong.")
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{folder}: no weights that gptexport reads: *.safetensors, pytorch_model.bin, or an index.json with shards "
        f"(the folder holds {found}). Weights of TensorFlow or Flax: load them with transformers and save_pretrained."
    )


def _read_one(path: Path) -> tuple[tuple[Path, ...], dict[str, torch.Tensor]]:
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return (path,), _read_file(path)


def _read_shards(index: Path) -> tuple[tuple[Path, ...], dict[str, torch.Tensor]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map; expected one from each weight's name to its file.")
    shards = sorted({_shard_name(name, index) for name in weight_map.values()})
    if missing := [name for name in shards if not is_file(index.parent / name)]:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(shards)} shards are not there: {', '.join(missing)}. "
            "Copy or download them again."
        )
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        held = _read_file(index.parent / shard)
        listed = {name for name, file in weight_map.items() if file == shard}
        if held.keys() != listed:
            differ = ", ".join(sorted(held.keys() ^ listed))
            raise CheckpointError(f"{index}: {shard} does not hold what the index says; they differ in: {differ}.")
        state |= held
    return (index, *(index.parent / shard for shard in shards)), state


def _shard_name(name: object, index: Path) -> str:
    if not isinstance(name, str) or not name or name in (".", "..") or re.search(r"[/\\:\x00]", name):
        raise CheckpointError(
            f"{index}: weight_map names the file {name!r}; expected a plain file name in the same folder."
        )
    return name


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    kind = recognise(path)
    if kind == "torch":
        return _state_dict(read_torch_file(path).payload, path)
    if isinstance(kind, Foreign) and kind.format in ("git-lfs", "html", "empty", "text"):
        raise CheckpointError(f"{path}: {kind.what}. {kind.advice}.")
    return _read_safetensors(path)


def _state_dict(payload: object, path: Path) -> dict[str, torch.Tensor]:
    """The weights in what torch.save wrote: all of it, or an entry that a training script put them under."""
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{path}: expected a dict of weights, got a {type(payload).__name__}.")
    nested = [payload[name] for name in NESTED if isinstance(payload.get(name), Mapping)]
    return dict(nested[0] if len(nested) == 1 else payload)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise corrupt(path, error) from error


def _prefixed(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """GPT2Model stores `wte.weight`, GPT2LMHeadModel `transformer.wte.weight`: the latter for both."""
    renamed: dict[str, torch.Tensor] = {}
    problems = []
    for name, weight in weights.items():
        full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if full in renamed:
            problems.append(f"twice         {full}: with the prefix `transformer.` and without")
        renamed[full] = weight
    return renamed, tuple(problems)


def _tie(tied: bool, weights: dict[str, torch.Tensor], folder: Path) -> bool:
    """Whether lm_head is wte, with lm_head put into `weights` where tying stands for storing it."""
    if not tied:
        return is_tied(weights)
    if _HEAD in weights and _WTE in weights and not is_tied(weights):
        raise CheckpointError(
            f"{folder}: config.json says tie_word_embeddings, but the stored lm_head.weight differs from wte.weight; "
            "one of them would be lost. If the head was trained on its own, set tie_word_embeddings to false there."
        )
    for there, absent in ((_WTE, _HEAD), (_HEAD, _WTE)):  # safetensors' save_model keeps either
        if there in weights:
            weights.setdefault(absent, weights[there])
    return True
