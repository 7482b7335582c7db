"""Text to token ids and back. The packages that know how are optional, and imported by whoever asks for them.

A bundle carries its tokenizer where the checkpoint had one: `bundle_tokenizer` opens it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gptexport_runtime.artifact import check_file, read_manifest
from gptexport_runtime.contract.names import CHARACTERS, MANIFEST_FILE
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError
from gptexport_runtime.files import as_path, is_file, is_folder
from gptexport_runtime.text.huggingface import tokenizer_of_json
from gptexport_runtime.text.sentencepiece import SENTENCEPIECE, tokenizer_of_model
from gptexport_runtime.text.streams import UNKNOWN, Pieces, StoppingStream, TextStream
from gptexport_runtime.text.tokenizer import Tokenizer, read_words

__all__ = [
    "READABLE",
    "SENTENCEPIECE",
    "UNKNOWN",
    "StoppingStream",
    "TextStream",
    "Tokenizer",
    "bundle_tokenizer",
    "characters",
    "load_tokenizer",
    "tokenizer_of_json",
]

READABLE = "bytes, gpt2, a tokenizer.json or SentencePiece's tokenizer.model"
BY_NAME = ("bytes", "gpt2")


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `gpt2` (by tiktoken), a Hugging Face `tokenizer.json`, a SentencePiece model, or a bundle's characters.

    Raises:
        InputError: it is none of these.
        ArtifactError: the file is damaged.
        BackendUnavailableError: what reads it is not installed, or cannot fetch its vocabulary.
    """
    if not isinstance(name, str):
        raise InputError(f"a tokenizer is named by a string, not by a {type(name).__name__}: expected {READABLE}.")
    if name == "bytes":
        return _of_pieces(name, 256, _utf8, lambda i: bytes([i]))
    if name == "gpt2":
        return _tiktoken(name)
    path = Path(name)
    if is_file(path) and path.suffix == ".json":
        data = read_words(path)
        return _characters_file(data, path) if path.name == CHARACTERS else tokenizer_of_json(data, str(path))
    if is_file(path) and path.suffix == ".model":
        return tokenizer_of_model(path)
    raise InputError(f"{name} is not a tokenizer: expected {READABLE}.")


def bundle_tokenizer(path: str | Path) -> Tokenizer | None:
    """The tokenizer that is in a bundle; None where there is none, or it is no bundle.

    Args:
        path: the bundle's folder, or its `gptexport.json`.

    Raises:
        ArtifactError: the bundle or the tokenizer's file is damaged.
        BackendUnavailableError: as `load_tokenizer`.
    """
    folder = as_path(path)
    if folder.name == MANIFEST_FILE:
        folder = folder.parent
    if not is_folder(folder):
        return None
    entry = read_manifest(folder).tokenizer
    if entry is None:
        return None
    if entry.file is None:
        if entry.name not in BY_NAME:  # never a path: a bundle opens nothing outside itself
            raise ArtifactError(
                f"{folder}: the tokenizer {entry.name!r} has no file in the bundle, and is none of "
                f"{', '.join(BY_NAME)}. Export again, or upgrade gptexport-runtime."
            )
        return load_tokenizer(entry.name)
    check_file(folder, entry.file, check_hash=True)
    return load_tokenizer(str(folder / entry.file.file))


def characters(table: Sequence[str], where: str) -> Tokenizer:
    """One id a character, as nanoGPT's character-level data has it. `table`: the character of each id."""
    ids = {character: i for i, character in enumerate(table)}

    def encode(text: str) -> list[int]:
        unknown = sorted(set(text) - set(ids))
        if unknown:
            raise InputError(f"the text holds characters that {where} does not have: {''.join(unknown[:20])!r}.")
        return [ids[character] for character in text]

    return _of_pieces("characters", len(table), encode, lambda i: table[i].encode())


def _of_pieces(name: str, size: int, encode: Callable[[str], list[int]], piece: Callable[[int], bytes]) -> Tokenizer:
    def known(i: int) -> bytes:
        return piece(i) if 0 <= i < size else UNKNOWN.encode()  # a model may have more tokens than its tokenizer

    return Tokenizer(
        name, size, encode, lambda i: known(i).decode("utf-8", "backslashreplace"), lambda: Pieces(known), known
    )


def _utf8(text: str) -> list[int]:
    try:
        return list(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"the text is no Unicode: {error.reason} at character {error.start}.") from error


def _tiktoken(name: str) -> Tokenizer:
    try:
        import tiktoken  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BackendUnavailableError(
            f"the {name} tokenizer needs tiktoken. Install it with `pip install tiktoken`."
        ) from None
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # it is fetched on first use
        raise BackendUnavailableError(
            f"tiktoken could not fetch the vocabulary of {name}, which it keeps after the first time: {error}. Connect "
            "once, set TIKTOKEN_CACHE_DIR to a folder that has it, or use a tokenizer.json of the same tokenizer."
        ) from error
    return _of_pieces(name, encoding.n_vocab, encoding.encode_ordinary, encoding.decode_single_token_bytes)


def _characters_file(data: bytes, path: Path) -> Tokenizer:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}.") from error
    if not isinstance(table, list) or not all(isinstance(character, str) for character in table):
        raise ArtifactError(f"{path} is not a list of characters. Copy the bundle again, or export again.")
    return characters(table, str(path))
