"""A Hugging Face tokenizer.json, by the tokenizers package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, GPTExportError, InputError
from gptexport_runtime.text.streams import UNKNOWN, Window
from gptexport_runtime.text.tokenizer import Tokenizer


def tokenizer_of_json(data: bytes, where: str) -> Tokenizer:
    """The tokenizer in the bytes of a tokenizer.json; `where` names it in messages.

    Truncation, padding and dropout belong to training and are switched off. A text is encoded with the special tokens
    that the tokenizer puts before it, as a BOS, and without those after it, as a SEP: the model is to go on from there.

    Raises:
        ArtifactError: it is none, or damaged.
        BackendUnavailableError: the tokenizers package is not installed.
    """
    try:
        import tokenizers  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BackendUnavailableError(
            f"{where} needs the tokenizers package. Install it with `pip install tokenizers`."
        ) from None
    with _own_errors(ArtifactError, f"{where} is not a tokenizer"):
        made = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        decoder = json.loads(data).get("decoder") or {}
        made.no_truncation()
        made.no_padding()
        if getattr(made.model, "dropout", None):
            made.model.dropout = None
        size = max(made.get_vocab().values(), default=-1) + 1  # ids may have gaps

    def encode(text: str) -> list[int]:
        with _own_errors(InputError, f"{where} cannot encode the text"):  # no token for what is unknown; no Unicode
            encoded = made.encode(text)
        ids, added = list(encoded.ids), encoded.special_tokens_mask
        while ids and added[len(ids) - 1] and len(ids) > 1:
            ids.pop()
        return ids

    def decode(ids: list[int]) -> str:
        with _own_errors(InputError, f"{where} cannot decode the ids"):
            return str(made.decode(ids, skip_special_tokens=False))

    def known(i: int) -> bool:
        return 0 <= i < 1 << 32 and made.id_to_token(i) is not None

    run = _byte_tokens(made) if "ByteFallback" in _steps(decoder) else {}
    return Tokenizer(
        Path(where).name,
        size,
        encode,
        lambda i: _shown(decode([i]), made.id_to_token(i)) if known(i) else UNKNOWN,
        lambda: Window(decode, known, run.get),
    )


@contextmanager
def _own_errors(kind: type[GPTExportError], what: str) -> Iterator[None]:
    """The package raises Exception itself; and where its Rust code panics, something that is not even that."""
    try:
        yield
    except Exception as error:
        raise kind(f"{what}: {error}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {error}.") from error


def _shown(text: str, token: str | None) -> str:
    return token if UNKNOWN in text and token is not None else text  # a byte that is no character: its token says which


def _byte_tokens(made: Any) -> dict[int, int]:
    """The byte that each token `<0x00>` to `<0xFF>` stands for."""
    found = {made.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    return {i: byte for i, byte in found.items() if i is not None}


def _steps(decoder: dict[str, Any]) -> set[str]:
    """The types of a decoder and of those that it is made of."""
    inner = decoder.get("decoders") or []
    return {str(decoder.get("type"))}.union(*(_steps(step) for step in inner))
