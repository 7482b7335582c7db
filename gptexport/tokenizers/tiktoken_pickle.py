"""nanochat's `tokenizer.pkl`, a pickled tiktoken.Encoding, as a Hugging Face tokenizer.json; nothing in it is executed.

The pickle holds the name, the pattern that splits text, the rank of every token and the special tokens. A rank says
when its token is merged and a tokenizer.json says of which two, so the merges are found again from the ranks.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gptexport.errors import TokenizerError
from gptexport.tokenizers.characters import check_sizes
from gptexport_runtime.files import open_regular, read_small

T = TypeVar("T")

MAX_BYTES = 64 << 20


class _Encoding:
    """Stands in for tiktoken.Encoding: holds its state, computes nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Constructs the stand-in and plain values. Anything else would be code that the pickle runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def is_tiktoken(path: Path) -> bool:
    """Whether a pickle begins by naming tiktoken's class; nothing of it is read beyond its first bytes."""
    try:
        with open_regular(path) as file:
            return b"tiktoken" in file.read(64)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error


def json_of_tiktoken(path: Path) -> bytes:
    """The tokenizer.json that encodes and decodes as the pickled encoding does.

    Raises:
        TokenizerError: it is none, is damaged, or would run code.
    """

    def read(state: Mapping[str, Any]) -> dict[str, Any]:
        ranks, special = _ranks(state["mergeable_ranks"]), _special(state["special_tokens"])
        pattern = state["pat_str"]
        if not isinstance(pattern, str):
            raise ValueError(f"pat_str is {pattern!r}")
        if set(special.values()) & set(ranks.values()):
            raise ValueError("a special token has the id of another")
        return _json(ranks, special, pattern)

    return written(_read(path, read))


def json_of_encoding(ranks: Mapping[bytes, int], special: Mapping[str, int], pattern: str) -> bytes:
    """The tokenizer.json of a byte-level encoding, by the rank of every token, its special tokens and its pattern.

    Raises:
        ValueError: no merges make these tokens.
    """
    return written(_json(_ranks(ranks), _special(special), pattern))


def written(tokenizer: Mapping[str, Any]) -> bytes:
    """A tokenizer.json's bytes."""
    return (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode()


def special_tokens_of(path: Path) -> dict[str, int]:
    """The ids of the pickled encoding's special tokens, such as `<|bos|>`.

    Raises:
        TokenizerError: as `json_of_tiktoken`.
    """
    return _read(path, lambda state: _special(state["special_tokens"]))


def _read(path: Path, read: Callable[[Mapping[str, Any]], T]) -> T:
    """What `read` makes of the state of a pickled encoding.

    Raises:
        TokenizerError: it is none, is damaged, or would run code.
    """
    try:
        data = read_small(path, MAX_BYTES)
        check_sizes(data)
        found = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(found, _Encoding):
            raise ValueError("it is no tiktoken.Encoding")
        if not isinstance(found.state, Mapping):  # of an encoding that tiktoken itself knows, its name alone
            raise ValueError(f"it holds {str(found.state)[:60]!r}, and no ranks")
        return read(found.state)
    except Exception as error:  # a damaged pickle raises whatever its bytes led to
        raise TokenizerError(f"{path} is not a pickled tiktoken.Encoding: {error}.") from error


def _ranks(found: Any) -> dict[bytes, int]:
    """Every token's bytes and its rank, which is its id."""
    ranks = dict(found)
    if not all(isinstance(token, bytes) and token and isinstance(rank, int) for token, rank in ranks.items()):
        raise ValueError("mergeable_ranks is no dict of bytes and ranks")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("the ranks are not 0, 1, 2, ...")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"no token is the byte {missing[0]}")
    return ranks


def _special(found: Any) -> dict[str, int]:
    special = dict(found)
    if not all(isinstance(text, str) and isinstance(i, int) and i >= 0 for text, i in special.items()):
        raise ValueError("special_tokens is no dict of texts and ids")
    return special


def _json(ranks: Mapping[bytes, int], special: Mapping[str, int], pattern: str) -> dict[str, Any]:
    letters = letters_of_bytes()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    in_order = sorted(ranks, key=lambda token: ranks[token])
    merges = [[spelled(part) for part in _halves(token, ranks)] for token in in_order if len(token) > 1]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a piece that is a token is that token, as in tiktoken
            "vocab": {spelled(token): ranks[token] for token in in_order},
            "merges": merges,
        },
    }


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens of which this one is merged: what is left when all earlier merges are done.

    Raises:
        ValueError: more than two are left, so that no merge makes it.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        found = [(rank, i) for i in range(len(parts) - 1) if (rank := ranks.get(parts[i] + parts[i + 1])) is not None]
        rank, i = min(found, default=(len(ranks), 0))
        if rank >= ranks[token]:
            raise ValueError(f"no merge of earlier tokens makes {token!r}")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def letters_of_bytes() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary, as GPT-2's has them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]
