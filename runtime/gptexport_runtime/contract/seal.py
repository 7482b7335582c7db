"""The last line of a file of weights says which weights they are, and each graph that reads them says the same.

Graphs name their weights by a file name alone, so that a graph of one export would run with the weights of another.
Comparing two lines notices that without reading the weights. It is no proof: that is the manifest's sha256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from gptexport_runtime.contract.names import META_WEIGHTS
from gptexport_runtime.files import open_regular

PREFIX = b"gptexport-weights "
LENGTH = len(PREFIX) + 64 + 1
_SEAL = re.compile(re.escape(PREFIX) + rb"([0-9a-f]{64})\n")


def seal(sha256: str) -> bytes:
    """The last line of a file of weights; `sha256` is of all that comes before it, in hex."""
    return PREFIX + sha256.encode() + b"\n"


def seal_of(weights: Path) -> str | None:
    """The sha256 in a file's last line; None: it has no such line, as before version 0.2, or is not there."""
    try:
        with open_regular(weights) as file:
            file.seek(-LENGTH, os.SEEK_END)
            found = _SEAL.fullmatch(file.read())
    except OSError:
        return None
    return found[1].decode() if found else None


def is_of_another_export(weights: Path, metadata: Mapping[str, str]) -> bool:
    """Do both say which weights they are, and differ? `metadata` is the graph's."""
    expected, found = metadata.get(META_WEIGHTS), seal_of(weights)
    return expected is not None and found is not None and expected != found
