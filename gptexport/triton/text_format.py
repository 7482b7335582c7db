"""Protocol buffers' text format, of which a config.pbtxt is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Enum:
    """A name that is written without quotes."""

    name: str


Value = str | int | bool | Enum | Mapping[str, "Value"] | Sequence["Value"]


def text_format(message: Mapping[str, Value], indent: str = "") -> str:
    """A message's fields, one a line; a sequence is a repeated field."""
    return "".join(_field(name, value, indent) for name, value in message.items())


def _field(name: str, value: Value, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{text_format(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(isinstance(item, int) for item in value):
            return f"{indent}{name}: [ {', '.join(map(str, value))} ]\n"
        return "".join(_field(name, item, indent) for item in value)
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: str | int | bool | Enum) -> str:
    if isinstance(value, Enum):
        return value.name
    return json.dumps(value)  # quotes and escapes are those of JSON
