"""A tokenizer as the fields of a .gguf, where llama.cpp splits text as it does."""

from __future__ import annotations

import json
from typing import Any

from gptexport.tokenizers import HUGGINGFACE, BundledTokenizer
from gptexport.tokenizers.as_json import splits_as_gpt2, tokenizer_files

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens
NO_MERGE = "[none] [none]"  # llama.cpp wants one; these are no letters of bytes, so that it is never made
NONE = {"tokenizer.ggml.model": "no_vocab"}


def tokenizer_fields(tokenizer: BundledTokenizer | None, vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields, and what a person should know of them.

    Args:
        vocab_size: of the model; ids without a token are marked as unused.
    """
    if tokenizer is None:
        return NONE, ()
    files, notes = tokenizer_files(tokenizer, vocab_size)
    if HUGGINGFACE not in files:
        return NONE, (*notes, "the file has no tokenizer: llama.cpp takes and gives ids")
    made = json.loads(files[HUGGINGFACE])
    if not splits_as_gpt2(made):
        return NONE, ("the file has no tokenizer: llama.cpp is not known to split text as this one does",)
    tokens = {i: text for text, i in made["model"]["vocab"].items()}
    added = {token["id"]: token["content"] for token in made["added_tokens"]}
    every = [added.get(i) or tokens.get(i) for i in range(vocab_size)]
    kinds = [UNUSED if text is None else CONTROL if i in added else NORMAL for i, text in enumerate(every)]
    merges = [two if isinstance(two, str) else " ".join(two) for two in made["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"[unused{i}]" if text is None else text for i, text in enumerate(every)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges or [NO_MERGE],
    }, ()
