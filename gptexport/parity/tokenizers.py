"""Plain text to token ids and back, with the tokenizers that people's models were trained on."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport_runtime import GPTExportError


@dataclass(frozen=True)
class Tokenizer:
    """`decode` is of one id, for people: what is no text is shown as it can be."""

    encode: Callable[[str], list[int]]
    decode: Callable[[int], str]


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `gpt2` (by tiktoken), a Hugging Face `tokenizer.json`, or nanoGPT's `meta.pkl`.

    Raises:
        GPTExportError: it is none of these, or what reads it is not installed.
    """
    if name == "bytes":
        return Tokenizer(lambda text: list(text.encode()), lambda i: bytes([i]).decode("utf-8", "backslashreplace"))
    if name == "gpt2":
        return _tiktoken(name)
    path = Path(name)
    if path.is_file() and path.suffix == ".json":
        return _huggingface(path)
    if path.is_file() and path.suffix == ".pkl":
        return _characters(path)
    raise GPTExportError(f"{name} is not a tokenizer: expected bytes, gpt2, a tokenizer.json or nanoGPT's meta.pkl.")


def _tiktoken(name: str) -> Tokenizer:
    try:
        import tiktoken  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise GPTExportError(f"the {name} tokenizer needs tiktoken. Install it with: pip install tiktoken") from None
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # it is fetched on first use
        raise GPTExportError(f"tiktoken cannot load {name}: {error}") from error
    return Tokenizer(encoding.encode_ordinary, lambda i: str(encoding.decode([i])))


def _huggingface(path: Path) -> Tokenizer:
    try:
        import tokenizers
    except ImportError:
        raise GPTExportError(f"{path} needs the tokenizers package. Install it with: pip install tokenizers") from None
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise GPTExportError(f"{path} is not a tokenizer: {error}") from error
    return Tokenizer(
        lambda text: list(made.encode(text, add_special_tokens=False).ids), lambda i: str(made.decode([i]))
    )


class _DataOnly(pickle.Unpickler):
    """A pickle of dicts, strings and numbers. Anything else would be code that it runs."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _characters(path: Path) -> Tokenizer:
    try:
        meta = _DataOnly(io.BytesIO(path.read_bytes())).load()
        stoi, itos = dict(meta["stoi"]), dict(meta["itos"])
    except Exception as error:
        raise GPTExportError(f"{path} is not nanoGPT's meta.pkl with stoi and itos: {error}") from error

    def encode(text: str) -> list[int]:
        unknown = sorted(set(text) - set(stoi))
        if unknown:
            raise GPTExportError(f"the text holds characters that {path} does not have: {''.join(unknown[:20])!r}")
        return [int(stoi[character]) for character in text]

    return Tokenizer(encode, lambda i: str(itos.get(i, "�")))
