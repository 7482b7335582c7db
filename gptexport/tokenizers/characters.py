"""nanoGPT's meta.pkl, the characters of a character-level model: a pickle, of which nothing is run."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from gptexport.errors import TokenizerError
from gptexport_runtime.files import read_small

MAX_BYTES = 16 << 20  # all of Unicode's characters, twice, fit
MAX_TUPLES = 1000  # so deep a key can still be hashed
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


class _DataOnly(pickle.Unpickler):
    """A pickle of dicts, strings and numbers. Anything else would be code that it runs."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def characters_of(path: Path) -> list[str]:
    """The character of each id.

    Raises:
        TokenizerError: it is no meta.pkl, is damaged, or is made to exhaust whoever reads it.
    """
    try:
        data = read_small(path, MAX_BYTES)
        check_sizes(data)
        meta = _DataOnly(io.BytesIO(data)).load()
        table, ids = meta["itos"], meta["stoi"]
        found = [_character(table[i]) for i in range(len(table))]
        if {character: i for i, character in enumerate(found)} != ids:
            raise ValueError("stoi and itos contradict one another")
    except Exception as error:  # a pickle may raise anything
        raise TokenizerError(f"{path} is not nanoGPT's meta.pkl with stoi and itos: {error}.") from error
    return found


def check_sizes(data: bytes) -> None:
    """No number in it may take memory: the C unpickler makes room for every index up to the largest that is named."""
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        tuples += opcode.name in _TUPLES
        if (opcode.name in _PUTS and int(str(argument)) > len(data)) or tuples > MAX_TUPLES:
            raise ValueError("it is no plain table, and made to take memory")


def _character(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"itos holds a {type(value).__name__}; expected characters")
    value.encode()  # half a surrogate pair is no character
    return value
