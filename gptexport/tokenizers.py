"""The tokenizers that people's models were trained with: read from where training left them, put into bundles."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptexport.tiktoken_pickle import is_tiktoken, tokenizer_json
from gptexport_runtime import BackendUnavailableError, GPTExportError
from gptexport_runtime.contract.names import CHARACTERS
from gptexport_runtime.text import Tokenizer, bundle_tokenizer, characters
from gptexport_runtime.text import load_tokenizer as load_portable

if TYPE_CHECKING:
    from gptexport.checkpoints import Checkpoint

HUGGINGFACE = "tokenizer.json"
CHARACTERS_NAME = "characters"
READABLE = "bytes, gpt2, a tokenizer.json, nanoGPT's meta.pkl or nanochat's tokenizer.pkl"


@dataclass(frozen=True)
class Travelling:
    """What of a tokenizer goes into a bundle: its name, and a file where the name does not say it all."""

    name: str
    size: int  # ids are 0 ... size-1
    file: str | None = None
    data: bytes = b""


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `gpt2` (by tiktoken), a Hugging Face `tokenizer.json`, nanoGPT's `meta.pkl`, nanochat's `tokenizer.pkl`.

    Raises:
        GPTExportError: it is none of these, is damaged, or what reads it is not installed.
    """
    if Path(name).is_file() and Path(name).suffix == ".pkl":
        if not is_tiktoken(Path(name)):
            return characters(_characters(Path(name)), name)
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / HUGGINGFACE
            written.write_bytes(tokenizer_json(Path(name)))
            return load_portable(str(written))
    if name not in ("bytes", "gpt2") and not (Path(name).is_file() and Path(name).suffix == ".json"):
        raise GPTExportError(f"{name} is not a tokenizer: expected {READABLE}.")
    return load_portable(name)


def travelling(name: str) -> Travelling:
    """The tokenizer of this name or file, to go into a bundle. Nothing has to be installed that reads it.

    Raises:
        GPTExportError: it is none, or is damaged.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".pkl" and is_tiktoken(path):
        data = tokenizer_json(path)
        return Travelling(HUGGINGFACE, _ids_of(data, path), HUGGINGFACE, data)
    if path.is_file() and path.suffix == ".pkl":
        table = _characters(path)
        return Travelling(
            CHARACTERS_NAME, len(table), CHARACTERS, (json.dumps(table, ensure_ascii=False) + "\n").encode()
        )
    if path.is_file() and path.suffix == ".json":
        data = path.read_bytes()
        return Travelling(HUGGINGFACE, _ids_of(data, path), HUGGINGFACE, data)
    sizes = {"bytes": 256, "gpt2": 50257}
    if name not in sizes:
        raise GPTExportError(f"{name} is not a tokenizer: expected {READABLE}.")
    return Travelling(name, sizes[name])


def found_with(checkpoint: Checkpoint) -> tuple[Travelling | None, str | None]:
    """The tokenizer that was found with a checkpoint, or why it stays behind: nobody asked for it, so that is no error.

    Returns: the tokenizer, or None; and what a person should know of it.
    """
    if checkpoint.tokenizer is None:
        return None, None
    try:
        words = travelling(str(checkpoint.tokenizer))
    except GPTExportError as error:
        return None, f"{error}; no tokenizer travels in the bundle"
    V = checkpoint.vocab_size
    if words.size > V or (words.name == CHARACTERS_NAME and words.size != V):  # nanoGPT takes V from its characters
        return None, f"{checkpoint.tokenizer} has {words.size} ids, the model {V}; no tokenizer travels in the bundle"
    return words, f"{checkpoint.tokenizer} travels in the bundle"


def tokenizer_for(bundle: Path, name: str | None, *, needed: bool) -> Tokenizer | None:
    """The tokenizer of this name, or else the bundle's own. None: neither, or it is not `needed` and not installed.

    Raises:
        GPTExportError: as `load_tokenizer` and `bundle_tokenizer`.
    """
    if name is not None:
        return load_tokenizer(name)
    try:
        return bundle_tokenizer(bundle)
    except BackendUnavailableError:
        if needed:
            raise
        return None


def _ids_of(data: bytes, path: Path) -> int:
    """How many ids a tokenizer.json knows: the largest and one more."""
    try:
        parsed = json.loads(data)
        vocab = parsed["model"]["vocab"]  # of a unigram model a list, else ids by token
        ids = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
        added = [int(token["id"]) for token in parsed.get("added_tokens") or []]
        return max([*(int(i) for i in ids), *added]) + 1
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GPTExportError(f"{path} is not a Hugging Face tokenizer: {type(error).__name__} {error}") from error


class _DataOnly(pickle.Unpickler):
    """A pickle of dicts, strings and numbers. Anything else would be code that it runs."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _characters(path: Path) -> list[str]:
    """The character of each id, from nanoGPT's meta.pkl."""
    try:
        meta = _DataOnly(io.BytesIO(path.read_bytes())).load()
        table = dict(meta["itos"])
        found = [str(table[i]) for i in range(len(table))]
        if {character: i for i, character in enumerate(found)} != dict(meta["stoi"]):
            raise ValueError("stoi and itos contradict one another")
    except Exception as error:
        raise GPTExportError(f"{path} is not nanoGPT's meta.pkl with stoi and itos: {error}") from error
    return found
