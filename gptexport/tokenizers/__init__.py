"""The tokenizers that people's models were trained with: read from where training left them, put into bundles."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptexport.errors import ExportError, TokenizerError
from gptexport.tokenizers.characters import characters_of
from gptexport.tokenizers.tiktoken_pickle import is_tiktoken, json_of_tiktoken
from gptexport.tokenizers.tokenizer_json import ids_of, parse, read_bytes, read_tokenizer_json
from gptexport.tokenizers.vocabulary import byte_level_bpe, is_vocab, word_piece
from gptexport_runtime import BackendUnavailableError, GPTExportError
from gptexport_runtime.contract.names import CHARACTERS
from gptexport_runtime.files import is_folder, status
from gptexport_runtime.text import SENTENCEPIECE, Tokenizer, bundle_tokenizer, characters, tokenizer_of_json
from gptexport_runtime.text import load_tokenizer as load_portable

if TYPE_CHECKING:
    from gptexport.checkpoints import Checkpoint

HUGGINGFACE = "tokenizer.json"
CHARACTERS_NAME = "characters"
GPT2_IDS = 50257
READABLE = (
    "bytes, gpt2, a tokenizer.json, vocab.json beside its merges.txt, BERT's vocab.txt, SentencePiece's "
    "tokenizer.model, nanoGPT's meta.pkl or nanochat's tokenizer.pkl"
)
_AS_JSON = (
    "Save it as a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) with transformers"
)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a token in base64, and its rank


@dataclass(frozen=True)
class BundledTokenizer:
    """What of a tokenizer goes into a bundle: its name, and a file where the name does not say it all."""

    name: str
    size: int  # ids are 0 ... size-1
    file: str | None = None
    data: bytes = b""
    changes: tuple[str, ...] = ()  # in the file, for people


def check_size(tokenizer: BundledTokenizer | None, vocab_size: int) -> None:
    """Refuse a tokenizer with more ids than the model takes.

    Raises:
        ExportError: it has.
    """
    if tokenizer is not None and tokenizer.size > vocab_size:
        raise ExportError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the model's vocabulary {vocab_size}: "
            "it is not this model's."
        )


def load_tokenizer(name: str) -> Tokenizer:
    """Any of READABLE.

    Raises:
        GPTExportError: it is none of these, is damaged, or what reads it is not installed.
    """
    words = tokenizer_to_bundle(name)
    if words.file is None:
        return load_portable(words.name)
    if words.name == CHARACTERS_NAME:
        return characters(json.loads(words.data), name)
    return load_portable(name) if words.name == SENTENCEPIECE else tokenizer_of_json(words.data, name)


def tokenizer_to_bundle(name: str) -> BundledTokenizer:
    """The tokenizer of this name or file, to go into a bundle.

    Raises:
        GPTExportError: it is none, is damaged, is in a form that is not read, or what reads it is not installed.
    """
    sizes = {"bytes": 256, "gpt2": GPT2_IDS}
    if name in sizes:
        return BundledTokenizer(name, sizes[name])
    path = Path(name)
    if status(path) is None:
        raise TokenizerError(f"{name} is not a tokenizer: expected {READABLE}.")
    if is_folder(path):
        raise TokenizerError(f"{name} is a folder; name the tokenizer's file in it: {READABLE}.")
    match path.suffix:
        case ".pkl" if is_tiktoken(path):
            made = json_of_tiktoken(path)
            return BundledTokenizer(HUGGINGFACE, _size(made, path), HUGGINGFACE, made)
        case ".pkl":
            table = characters_of(path)
            data = (json.dumps(table, ensure_ascii=False) + "\n").encode()
            return BundledTokenizer(CHARACTERS_NAME, len(table), CHARACTERS, data)
        case ".json":
            return _of_json(path)
        case ".txt":
            made = word_piece(path)
            return BundledTokenizer(HUGGINGFACE, _size(made, path), HUGGINGFACE, made)
        case ".model" | ".tiktoken" | ".vocab":
            return _of_model(path)
    raise TokenizerError(f"{name} is not a tokenizer: expected {READABLE}.")


def found_with(checkpoint: Checkpoint) -> tuple[BundledTokenizer | None, str | None]:
    """The tokenizer that was found with a checkpoint, or why the bundle gets none: it was not asked for, so no error.

    Returns: the tokenizer, or None; and what a person should know of it.
    """
    V = max(checkpoint.vocab_size, checkpoint.input_vocab_size or 0)
    if checkpoint.tokenizer is None:
        gpt2 = " If its text is GPT-2's, as the vocabulary looks: --tokenizer gpt2" if 0 <= V - GPT2_IDS < 256 else ""
        none = "no tokenizer was found with the checkpoint: ids go in and come out, not text (--tokenizer names one)."
        return None, none + gpt2
    try:
        words = tokenizer_to_bundle(str(checkpoint.tokenizer))
    except GPTExportError as error:
        return None, f"{error} Therefore the bundle carries no tokenizer."
    if words.size > V or (words.name == CHARACTERS_NAME and words.size != V):  # nanoGPT takes V from its characters
        return None, f"{checkpoint.tokenizer} has {words.size} ids, the model {V}: the bundle carries no tokenizer."
    changes = f", and {', '.join(words.changes)}" if words.changes else ""
    return words, f"{checkpoint.tokenizer} is included in the bundle{changes}"


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


def _of_json(path: Path) -> BundledTokenizer:
    parsed = parse(read_bytes(path), path)
    if is_vocab(parsed):
        made = byte_level_bpe(path)
        return BundledTokenizer(HUGGINGFACE, _size(made, path), HUGGINGFACE, made)
    read = read_tokenizer_json(path)
    return BundledTokenizer(HUGGINGFACE, read.size, HUGGINGFACE, read.data, read.changes)


def _size(made: bytes, path: Path) -> int:
    """How many ids a tokenizer.json has that was made of a file."""
    return max(ids_of(parse(made, path), path).values(), default=-1) + 1


def _of_model(path: Path) -> BundledTokenizer:
    data = read_bytes(path)
    if _TIKTOKEN.match(data):
        raise TokenizerError(
            f"{path} is a tiktoken vocabulary, which does not say how a text is split before it is encoded. {_AS_JSON}."
        )
    return BundledTokenizer(SENTENCEPIECE, load_portable(str(path)).size, SENTENCEPIECE, data)
