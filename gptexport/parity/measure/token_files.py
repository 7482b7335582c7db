"""Real text as token ids, from the files that people have."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from gptexport.parity.measure.metrics import Ids
from gptexport_runtime import GPTExportError
from gptexport_runtime.files import open_regular
from gptexport_runtime.text import Tokenizer

LLMC_MAGIC = 20240520
LLAMA_MAGIC = 20240801
LLMC_HEADER_BYTES = 256 * 4  # int32s
# what numpy raises, which parses the header of an .npy as Python
DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    TypeError,
    SyntaxError,
    TokenError,
    MemoryError,
    RecursionError,
)


def read_tokens(path: Path, vocab_size: int, tokenizer: Tokenizer | None = None) -> Ids:
    """Read a token file: `.npy` (build-nanogpt), llm.c `.bin` (by its header), raw uint16 `.bin` (nanoGPT).

    Args:
        tokenizer: of plain text, which any other file is then taken for.

    Raises:
        GPTExportError: it is none of these, or holds ids that the model does not have.
    """
    try:
        open_regular(path).close()
        if path.suffix == ".npy":
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".bin":
            tokens = _read_bin(path)
        elif tokenizer is not None:
            tokens = np.array(tokenizer.encode(path.read_text(encoding="utf-8")), dtype=np.int64)
        else:
            raise GPTExportError(
                f"{path} is not a token file: expected .bin (nanoGPT, llm.c) or .npy (build-nanogpt). "
                "For plain text also pass --tokenizer."
            )
    except DAMAGED as error:
        raise GPTExportError(f"{path} cannot be read as tokens: {error}.") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or not len(tokens):
        raise GPTExportError(f"{path} holds {tokens.dtype} of shape {tokens.shape}; expected a row of integers.")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise GPTExportError(
            f"{path} holds ids {low} to {high}; the model has 0 to {vocab_size - 1}. Is it another tokenizer's?"
        )
    return tokens  # type: ignore[no-any-return]


def is_token_file(path: Path) -> bool:
    """Whether `read_tokens` takes a file for ids, by its suffix, rather than for plain text."""
    return path.suffix in (".npy", ".bin")


def _read_bin(path: Path) -> Any:
    with path.open("rb") as file:
        magic, version = (int.from_bytes(file.read(4), "little") for _ in range(2))
    if magic == LLAMA_MAGIC:
        raise GPTExportError(f"{path} holds uint32 ids of Llama 3's tokenizer (llm.c); a GPT-2 has other tokens.")
    is_llmc = magic == LLMC_MAGIC and version == 1 and path.stat().st_size > LLMC_HEADER_BYTES
    return np.memmap(path, dtype=np.uint16, mode="r", offset=LLMC_HEADER_BYTES if is_llmc else 0)
