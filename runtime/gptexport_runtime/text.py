"""Text to token ids and back. The packages that know how are optional, and imported by whoever asks for them.

A bundle carries its tokenizer where the checkpoint had one: `bundle_tokenizer` opens it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptexport_runtime.artifact import check_file, read_manifest
from gptexport_runtime.contract.names import CHARACTERS, MANIFEST_FILE
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError

READABLE = "bytes, gpt2, or a tokenizer.json"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what is no text
LONGEST_CUT = 3  # a character has up to 4 bytes: what is cut of it decodes to at most so many UNKNOWN


class TextStream(Protocol):
    """Ids in as they come, text out as soon as its characters are whole; an id that is none becomes U+FFFD."""

    def feed(self, ids: Sequence[int]) -> str: ...

    def end(self) -> str:
        """What is left: half a character becomes U+FFFD. The next `feed` begins anew."""
        ...


@dataclass(frozen=True)
class Tokenizer:
    """How a model's text becomes ids and its ids text."""

    name: str
    size: int  # ids are 0 ... size-1
    encode: Callable[[str], list[int]]
    show: Callable[[int], str]  # one id for people; what is no text is shown as it can be
    stream: Callable[[], TextStream]

    def decode(self, ids: Sequence[int]) -> str:
        """All of it at once; bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream()
        return stream.feed(ids) + stream.end()


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `gpt2` (by tiktoken), a Hugging Face `tokenizer.json`, or the JSON of a bundle's characters.

    Raises:
        InputError: it is none of these.
        ArtifactError: the file is damaged.
        BackendUnavailableError: what reads it is not installed, or cannot fetch its vocabulary.
    """
    if name == "bytes":
        return _of_pieces(name, 256, lambda text: list(text.encode()), lambda i: bytes([i]))
    if name == "gpt2":
        return _tiktoken(name)
    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        return _characters_file(path) if path.name == CHARACTERS else _huggingface(path)
    raise InputError(f"{name} is not a tokenizer: expected {READABLE}.")


def bundle_tokenizer(path: str | Path) -> Tokenizer | None:
    """The tokenizer that travels in a bundle; None where there is none, or it is no bundle.

    Args:
        path: the bundle's folder, or its `gptexport.json`.

    Raises:
        ArtifactError: the bundle or the tokenizer's file is damaged.
        BackendUnavailableError: as `load_tokenizer`.
    """
    folder = Path(path)
    if folder.name == MANIFEST_FILE:
        folder = folder.parent
    if not folder.is_dir():
        return None
    entry = read_manifest(folder).tokenizer
    if entry is None:
        return None
    if entry.file is None:
        return load_tokenizer(entry.name)
    check_file(folder, entry.file, check_hash=True)
    return load_tokenizer(str(folder / entry.file.file))


def characters(table: Sequence[str], where: str) -> Tokenizer:
    """One id a character, as nanoGPT's character-level data has it. `table`: the character of each id."""
    ids = {character: i for i, character in enumerate(table)}

    def encode(text: str) -> list[int]:
        unknown = sorted(set(text) - set(ids))
        if unknown:
            raise InputError(f"the text holds characters that {where} does not have: {''.join(unknown[:20])!r}")
        return [ids[character] for character in text]

    return _of_pieces("characters", len(table), encode, lambda i: table[i].encode())


class StoppingStream:
    """A stream that ends before the first of some texts. What may be the beginning of one waits."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self.stopped = False  # one of the texts came; nothing after it is given out
        self._stream = stream
        self._stops = stops
        self._waiting = ""

    def feed(self, ids: Sequence[int]) -> str:
        return self._take(self._stream.feed(ids))

    def end(self) -> str:
        text = self._take(self._stream.end()) + self._waiting
        self._waiting = ""
        return text

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._waiting + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        begun = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        self.stopped = bool(found)
        cut = min(found) if found else len(text) - max(begun, default=0)
        self._waiting = "" if found else text[cut:]
        return text[:cut]


class _Pieces:
    """Each id is some bytes."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Sequence[int]) -> str:
        return "".join(self._decoder.decode(self._piece(i)) for i in ids)

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Window:
    """Ids whose text depends on their neighbours: the last few are decoded again with each that comes."""

    def __init__(self, decode: Callable[[list[int]], str], known: Callable[[int], bool]) -> None:
        self._decode = decode
        self._known = known
        self._ids: list[int] = []
        self._told = 0  # how many characters of their text have been given out

    def feed(self, ids: Sequence[int]) -> str:
        return "".join(self._take(i) for i in ids)

    def _take(self, one: int) -> str:
        if not self._known(one):
            return self.end() + UNKNOWN
        self._ids.append(one)
        text = self._decode(self._ids)
        cut = min(len(text) - len(text.rstrip(UNKNOWN)), LONGEST_CUT)  # half a character waits for the rest
        new = text[self._told : len(text) - cut]
        self._told += len(new)
        if not cut:  # the last id alone is what the next one's text can depend on
            self._ids = [one]
            self._told = len(self._decode(self._ids))
        return new

    def end(self) -> str:
        left = self._decode(self._ids)[self._told :]
        self._ids, self._told = [], 0
        return left


def _of_pieces(name: str, size: int, encode: Callable[[str], list[int]], piece: Callable[[int], bytes]) -> Tokenizer:
    def known(i: int) -> bytes:
        return piece(i) if 0 <= i < size else UNKNOWN.encode()  # a model may have more tokens than its tokenizer

    return Tokenizer(name, size, encode, lambda i: known(i).decode("utf-8", "backslashreplace"), lambda: _Pieces(known))


def _tiktoken(name: str) -> Tokenizer:
    try:
        import tiktoken  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BackendUnavailableError(
            f"the {name} tokenizer needs tiktoken. Install it with: pip install tiktoken"
        ) from None
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # it is fetched on first use
        raise BackendUnavailableError(
            f"tiktoken could not fetch the vocabulary of {name}, which it keeps after the first time: {error}. Connect "
            "once, set TIKTOKEN_CACHE_DIR to a folder that has it, or use a tokenizer.json of the same tokenizer."
        ) from error
    return _of_pieces(name, encoding.n_vocab, encoding.encode_ordinary, encoding.decode_single_token_bytes)


def _huggingface(path: Path) -> Tokenizer:
    try:
        import tokenizers  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BackendUnavailableError(
            f"{path} needs the tokenizers package. Install it with: pip install tokenizers"
        ) from None
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ArtifactError(f"{path} is not a tokenizer: {error}") from error

    def decode(ids: list[int]) -> str:
        return str(made.decode(ids, skip_special_tokens=False))

    def known(i: int) -> bool:
        return 0 <= i < 1 << 32 and made.id_to_token(i) is not None

    return Tokenizer(
        path.name,
        max(made.get_vocab().values(), default=-1) + 1,  # ids may have gaps
        lambda text: list(made.encode(text, add_special_tokens=False).ids),
        lambda i: decode([i]) if known(i) else UNKNOWN,
        lambda: _Window(decode, known),
    )


def _characters_file(path: Path) -> Tokenizer:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
    if not isinstance(table, list) or not all(isinstance(character, str) for character in table):
        raise ArtifactError(f"{path} is not a list of characters. Copy the bundle again, or export again.")
    return characters(table, str(path))
