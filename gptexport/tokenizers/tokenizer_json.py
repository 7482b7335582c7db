"""A Hugging Face tokenizer.json on its way into a bundle: read as data, without what training left switched on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport.errors import TokenizerError
from gptexport_runtime.files import read_small

MAX_BYTES = 1 << 29


@dataclass(frozen=True)
class TokenizerJson:
    """What a tokenizer.json holds, and what was changed in it."""

    data: bytes  # the file's own, unless something was changed
    size: int  # ids are 0 ... size-1
    ids: Mapping[str, int]  # of every token
    changes: tuple[str, ...]  # for people


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Read it, switch off what belongs to training, and apply what tokenizer_config.json beside it says of prefixes.

    Raises:
        TokenizerError: it is none, is damaged, or is too large to be one.
    """
    data = read_bytes(path)
    parsed = parse(data, path)
    ids = ids_of(parsed, path)
    changes = tuple(change for change in (_untruncate(parsed), _unpad(parsed), _without_dropout(parsed)) if change)
    if change := _prefix(parsed, _beside(path)):
        changes = (*changes, change)
    if changes:
        data = json.dumps(parsed).encode()  # in ASCII: a half of a surrogate pair, which JSON may hold, is no UTF-8
    return TokenizerJson(data, max(ids.values(), default=-1) + 1, ids, changes)


def read_bytes(path: Path) -> bytes:
    """A regular file of reasonable size.

    Raises:
        TokenizerError: it is neither, or cannot be read.
    """
    try:
        return read_small(path, MAX_BYTES)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}.") from error


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        TokenizerError: it is no JSON, or no object.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise TokenizerError(f"{path} is not a tokenizer: a JSON {type(parsed).__name__}, expected an object.")
    return parsed


def ids_of(parsed: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Every token's id, added ones too.

    Raises:
        TokenizerError: it is no tokenizer.json.
    """
    try:
        vocab = parsed["model"]["vocab"]  # of a Unigram model a list of (token, score), else ids by token
        pairs = [(piece, i) for i, (piece, _) in enumerate(vocab)] if isinstance(vocab, list) else list(vocab.items())
        pairs += [(token["content"], token["id"]) for token in parsed.get("added_tokens") or []]
        if not all(isinstance(token, str) and type(i) is int and 0 <= i < 1 << 31 for token, i in pairs):
            raise ValueError("an id that is none")
        return dict(pairs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TokenizerError(
            f"{path} is not a Hugging Face tokenizer.json ({what}): expected a model with a vocab, and added_tokens."
        ) from error


def _untruncate(parsed: dict[str, Any]) -> str | None:
    truncation = parsed.get("truncation")
    parsed["truncation"] = None
    length = truncation.get("max_length") if isinstance(truncation, dict) else None
    return f"truncation to {length} tokens is switched off" if truncation is not None else None


def _unpad(parsed: dict[str, Any]) -> str | None:
    padding = parsed.get("padding")
    parsed["padding"] = None
    return "padding is switched off" if padding is not None else None


def _without_dropout(parsed: dict[str, Any]) -> str | None:
    model = parsed["model"]
    dropout = model.get("dropout")
    if not dropout:
        return None
    model["dropout"] = None
    return f"dropout of merges ({dropout}) is switched off"


def _prefix(parsed: dict[str, Any], config: Mapping[str, Any]) -> str | None:
    """transformers lets tokenizer_config.json decide whether a text is read as if a space stood before it."""
    wanted = config.get("add_prefix_space")
    if not isinstance(wanted, bool):
        return None
    change = None
    pre = parsed.get("pre_tokenizer")
    steps = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") == "ByteLevel" and step.get("add_prefix_space") is not wanted:
            step["add_prefix_space"] = wanted
            change = f"add_prefix_space is {wanted}, as in tokenizer_config.json"
    return change


def _beside(path: Path) -> dict[str, Any]:
    """tokenizer_config.json of the same folder, or nothing."""
    config = path.with_name("tokenizer_config.json")
    try:
        return parse(read_bytes(config), config) if config.is_file() else {}
    except TokenizerError:
        return {}  # whoever reads the folder tells
