"""A bundle's tokenizer as files that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptexport.errors import TokenizerError
from gptexport.tokenizers import CHARACTERS_NAME, GPT2_IDS, HUGGINGFACE, BundledTokenizer
from gptexport.tokenizers.tiktoken_pickle import json_of_encoding, letters_of_bytes, written
from gptexport_runtime.files import is_file, read_small
from gptexport_runtime.text import SENTENCEPIECE

CONFIG = "tokenizer_config.json"
BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
MOST = 64 << 20  # bytes of each
END_OF_TEXT = "<|endoftext|>"
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # before it is encoded


def tokenizer_files(
    tokenizer: BundledTokenizer | None, longest: int, beside: Path | None = None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files by their names, and what a person should know of them.

    Args:
        longest: tokens of a text, at most.
        beside: the folder that the tokenizer was found in, whose files for transformers are taken as they are.
    """
    files, notes = _files(tokenizer, longest)
    if files and beside is not None:
        files |= {name: read_small(beside / name, MOST) for name in BESIDE if is_file(beside / name)}
    return files, notes


def _files(tokenizer: BundledTokenizer | None, longest: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    if tokenizer is None:
        return {}, ()
    config: dict[str, Any] = {"model_max_length": longest, "clean_up_tokenization_spaces": False}
    if tokenizer.name == SENTENCEPIECE:
        named = {"tokenizer_class": "LlamaTokenizer", **config}
        return {"tokenizer.model": tokenizer.data, CONFIG: written(named)}, ()
    try:
        made = tokenizer.data if tokenizer.name == HUGGINGFACE else _JSON[tokenizer.name](tokenizer)
    except TokenizerError as error:
        return {}, (str(error),)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    return {HUGGINGFACE: made, CONFIG: written(named)}, ()


def splits_as_gpt2(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is byte-level BPE that splits a text as GPT-2's does, or has no merges to split for."""
    before, model = tokenizer.get("pre_tokenizer") or {}, tokenizer["model"]
    steps = before.get("pretokenizers", [before])
    if model.get("type") != "BPE" or not steps or steps[-1].get("type") != "ByteLevel" or tokenizer.get("normalizer"):
        return False
    if steps[-1].get("add_prefix_space"):
        return False
    patterns = [step["pattern"].get("Regex") for step in steps[:-1] if step.get("type") == "Split"]
    return not model["merges"] or patterns == [GPT2_SPLIT] or (len(steps) == 1 and steps[0].get("use_regex", True))


def _of_bytes(_tokenizer: BundledTokenizer) -> bytes:
    """An id a byte: byte-level BPE without a merge."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {letter: byte for byte, letter in enumerate(letters_of_bytes())}
    return _whole(byte_level, byte_level, {"type": "BPE", "vocab": vocab, "merges": []})


def _of_characters(tokenizer: BundledTokenizer) -> bytes:
    """An id a character: words of one letter each, which are not parted by spaces when they are put together."""
    vocab = {character: i for i, character in enumerate(json.loads(tokenizer.data))}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return _whole(split, {"type": "Fuse"}, {"type": "WordLevel", "vocab": vocab, "unk_token": ""})


def _whole(before: dict[str, Any], after: dict[str, Any], model: dict[str, Any]) -> bytes:
    """A tokenizer.json of what splits a text, what joins it again, and the model between them."""
    return written({"version": "1.0", "added_tokens": [], "pre_tokenizer": before, "decoder": after, "model": model})


def _of_gpt2(_tokenizer: BundledTokenizer) -> bytes:
    """By tiktoken's vocabulary, which it fetches on first use."""
    try:
        import tiktoken  # type: ignore[import-not-found,unused-ignore]

        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # it is missing, or there is no network
        raise TokenizerError(
            f"GPT-2's tokenizer is not in the folder: tiktoken is missing or cannot fetch its vocabulary ({error}). "
            "Copy tokenizer.json of openai-community/gpt2 there."
        ) from error
    ranks = {encoding.decode_single_token_bytes(i): i for i in range(GPT2_IDS - 1)}
    return json_of_encoding(ranks, {END_OF_TEXT: GPT2_IDS - 1}, GPT2_SPLIT)


_JSON = {"bytes": _of_bytes, CHARACTERS_NAME: _of_characters, "gpt2": _of_gpt2}
