"""What a Hugging Face folder says of its text: the tokenizer's file, the ids that begin and end a text, and more.

The ids are those that transformers' own `generate` uses: generation_config.json's where that file is there, which then
decides alone, else config.json's. Where neither names one that the model has, tokenizer_config.json's tokens do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport.checkpoints.formats.huggingface_config import read_json
from gptexport.errors import CheckpointError, TokenizerError
from gptexport.tokenizers.vocabulary import token_ids
from gptexport_runtime.contract.manifest import TextEntry

# in the order of preference; the first that is there is the tokenizer, whether or not it is one that is read
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.pkl",
)
TEXT_FILES = (  # all that a tokenizer and its use may need, without weights
    *TOKENIZER_FILES,
    "merges.txt",
    "*.tiktoken",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}  # defaults


@dataclass(frozen=True)
class Text:
    """The text's side of a folder."""

    tokenizer: Path | None
    ids: TextEntry
    notes: tuple[str, ...]


def find_tokenizer(folder: Path) -> Path | None:
    """The file that a folder's tokenizer is in, read or not; None where there is none."""
    named = [folder / name for name in TOKENIZER_FILES]
    return next((path for path in (*named, *sorted(folder.glob("*.tiktoken"))) if path.is_file()), None)


def text_of(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Text:
    """What a folder says of its text. Damaged files beside the model are told, and cost no more than what they say."""
    notes: list[str] = []
    said = {name: _read(folder / name, notes) for name in ("generation_config.json", "tokenizer_config.json")}
    generation, words = said["generation_config.json"], said["tokenizer_config.json"] or {}
    source = "config.json" if generation is None else "generation_config.json"
    tokenizer = find_tokenizer(folder)
    entry = entry_of(config if generation is None else generation, vocab_size, source, notes)
    if not entry.eos_token_ids:
        entry = _by_tokens(entry, {**_token_map(folder, notes), **words}, tokenizer, vocab_size, notes)
    asked = [f"{name} {(generation or {})[name]}" for name in _SAMPLING if _asks(generation or {}, name)]
    if asked:
        notes.append(f"generation_config.json asks for {', '.join(asked)}: generate takes these as options")
    if words.get("chat_template") or (folder / "chat_template.jinja").is_file():
        notes.append("there is a chat template, which generate does not apply: prompts go to the model as they are")
    if tokenizer is None and words:
        notes.append(
            f"tokenizer_config.json names {words.get('tokenizer_class', 'a tokenizer')}, of which no file is there"
        )
    return Text(tokenizer, entry, tuple(notes))


def entry_of(fields: Mapping[str, Any], vocab_size: int, source: str, notes: list[str]) -> TextEntry:
    """The ids among a config's fields that the model has; of others a note."""

    def ids_in(name: str) -> tuple[int, ...]:
        value = fields.get(name)
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        wrong = [i for i in values if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < vocab_size]
        if wrong:
            notes.append(f"{source} says {name} {value!r}, which is no id of this model's {vocab_size}")
        return tuple(i for i in values if i not in wrong)

    bos, pad = ids_in("bos_token_id"), ids_in("pad_token_id")
    return TextEntry(
        eos_token_ids=ids_in("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        pad_token_id=pad[0] if pad else None,
    )


def _by_tokens(
    entry: TextEntry, words: Mapping[str, Any], tokenizer: Path | None, vocab_size: int, notes: list[str]
) -> TextEntry:
    """The end of a text by its token, which the tokenizer's config names, where the model's config has none."""
    token = words.get("eos_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(token, str) or tokenizer is None:
        return entry
    try:
        found = token_ids(tokenizer).get(token)
    except TokenizerError:
        return entry  # whoever reads the tokenizer tells
    if found is None or not 0 <= found < vocab_size:
        return entry
    notes.append(f"a text ends at {token!r}, id {found}, as tokenizer_config.json says; the model's config names no id")
    return TextEntry(eos_token_ids=(found,), bos_token_id=entry.bos_token_id, pad_token_id=entry.pad_token_id)


def _token_map(folder: Path, notes: list[str]) -> dict[str, Any]:
    return _read(folder / "special_tokens_map.json", notes) or {}


def _asks(generation: Mapping[str, Any], name: str) -> bool:
    value = generation.get(name)
    return isinstance(value, int | float) and not isinstance(value, bool) and value != _SAMPLING[name]


def _read(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The object in a file; None where it is not there, or is damaged, which is noted."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except CheckpointError as error:
        notes.append(f"{error}; what it says of the text is not used")
        return None
