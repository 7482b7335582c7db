"""What an artifact says of its model and of its files, whichever kind of artifact it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptexport_runtime.errors import ArtifactError, shown

SEPARATORS = frozenset("/\\:" if os.name == "nt" else "/\\")
LARGEST = 2**31 - 1  # of any size of a model
_SHA256 = re.compile("[0-9a-f]{64}")


def _check_size(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"{name} is {shown(value)}; expected an integer from 1 to {LARGEST:,}")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a caller must know of the model to feed it. `None`: the artifact does not say."""

    vocab_size: int  # V, of the logits; and ids are 0 ... V-1, but for
    input_vocab_size: int | None = None  # how many ids there are, where it is not V: a padded head, a start token
    block_size: int | None = None  # longest T
    architecture: str = "unknown"
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None

    def __post_init__(self) -> None:
        _check_size("vocab_size", self.vocab_size)
        for name in ("block_size", "input_vocab_size"):
            if getattr(self, name) is not None:
                _check_size(name, getattr(self, name))

    @property
    def ids(self) -> int:
        """How many ids the model takes: 0 to this less one."""
        return self.input_vocab_size or self.vocab_size

    @property
    def predicted_ids(self) -> int:
        """How many ids both go in and come out: 0 to this less one. Only those can be compared, scored and fed back."""
        return min(self.ids, self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the artifact: a plain name beside its description, its size in bytes and its sha256 (hex)."""

    file: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not is_plain_name(self.file):
            raise ValueError(f"file is {shown(self.file)}; expected a plain file name")
        if self.bytes < 0 or self.bytes.bit_length() > 62:
            raise ValueError(f"bytes is {shown(self.bytes)}; expected a file's size")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {shown(self.sha256)}; expected 64 hexadecimal digits")


def is_plain_name(name: str) -> bool:
    """Is it the name of a file in the same folder, and nothing else?"""
    if not name.isprintable() or name in ("", ".", "..") or set(name) & SEPARATORS:
        return False
    return len(name.encode()) <= 255  # as filesystems count


def read_limit(metadata: Mapping[str, str], key: str, path: Path) -> int | None:
    """A size of the model from the metadata of the graph `path`; None: it does not say.

    Raises:
        ArtifactError: it is not a positive integer.
    """
    text = metadata.get(key)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 10 or not 0 < int(text) <= LARGEST:
        raise ArtifactError(f"{path}: {key} is {shown(text)}; expected a positive integer. Export again.")
    return int(text)


class Description(Protocol):
    """What describes an artifact: the manifest of a bundle or the sidecar of an engine. Ask it, not its class."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def model(self) -> Mapping[str, Any]: ...  # the full config, as the exporter wrote it
    @property
    def source(self) -> Mapping[str, Any]: ...  # checkpoint format, its sha256, how the GELU was decided
    @property
    def dtype(self) -> str: ...  # of the weights: "float32"
    @property
    def quantize(self) -> str | None: ...  # how the weights are quantized: "int8", "int8w", "int4"
    @property
    def runs_on(self) -> tuple[str, ...]: ...  # the devices whose kernels run it, the usual one first
    @property
    def parity(self) -> Mapping[str, Any] | None: ...  # the verdict of `gptexport parity`; None: never checked
    @property
    def identity(self) -> Mapping[str, Any]: ...  # hashes of its files, by the names that a verdict has for them
    @property
    def what(self) -> str: ...  # the files that `identity` is of, for people: "these graphs and weights"
    def why_stale(self) -> str | None: ...  # why `parity` is not about these files; None: it is, or there is none


def why_stale(description: Description, files: Mapping[str, str]) -> str | None:
    """Why the verdict is not about the artifact as it is described now; None where it is, or where there is none.

    Args:
        files: the keys of `identity`, each with the noun that names its files: {"engine_sha256": "another engine"}.
    """
    if description.parity is None:
        return None
    for key, noun in files.items():
        if description.parity.get(key) != description.identity[key]:
            return f"its parity verdict does not belong to it: it was measured on {noun}."
    return None
