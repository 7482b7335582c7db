"""JSON files that describe an artifact, parsed and validated: the manifest of a bundle, the sidecar of an engine.

A file becomes a frozen dataclass whose annotations say what each field must be. Unknown keys, which a newer version
may have written, are ignored; null stands for a field that is not there.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from gptexport_runtime.errors import ArtifactError, shown

_T = TypeVar("_T")
DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of document: how it is recognized, and what to do about one that is damaged."""

    what: str  # "a bundle manifest"
    name: str  # its value of "format"
    version: int  # its value of "format_version"
    again: str  # what writes it anew: "export again"

    def load(self, text: str, where: str) -> dict[str, Any]:
        """The document's fields, not validated yet.

        Args:
            where: names the file in errors.

        Raises:
            ArtifactError: the text is not JSON, not such a document, or of another version.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{where} is not JSON ({error}). It is damaged: {self.again}.") from error
        if not isinstance(data, dict) or data.get("format") != self.name:
            raise ArtifactError(f'{where} is not {self.what}: expected "format": "{self.name}".')
        if (unreasonable := _unreasonable(data)) is not None:
            raise ArtifactError(f"{where} holds {unreasonable}. It is damaged: {self.again}.")
        if data.get("format_version") != self.version:
            raise ArtifactError(
                f"{where} has format_version {shown(data.get('format_version'))}; this gptexport reads {self.version}. "
                f"{self.again.capitalize()} with this version, or upgrade gptexport-runtime."
            )
        return data

    def build(self, cls: type[_T], data: object, where: str) -> _T:
        """The dataclass `cls` with the fields that `data` has.

        Args:
            where: names `data` in errors: "manifest: weights".

        Raises:
            ArtifactError: a field is missing, or is not what its annotation says.
        """
        try:
            return _dataclass(cls, data)
        except _Invalid as error:
            raise ArtifactError(f"{where}{error}. It is damaged: {self.again}.") from error


def _unreasonable(data: dict[str, Any]) -> str | None:
    """What in a document no writer writes, and would be in every reader's way: values at any depth, of any size."""
    level: list[Any] = [data]
    for _ in range(DEPTH):
        inside = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        for item in inside:
            if isinstance(item, int) and item.bit_length() > 63:
                return f"the number {shown(item, 30)}"
        level = [item for item in inside if isinstance(item, dict | list)]
        if not level:
            return None
    return f"values that are more than {DEPTH} deep"


class _Invalid(Exception):
    """What is wrong, and in which field: `.graphs.logits.bytes` is written from the inside out."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason, self.path = reason, path

    def inside(self, name: str) -> _Invalid:
        return _Invalid(self.reason, f"{name}.{self.path}" if self.path else name)

    def __str__(self) -> str:
        return f": {self.path} {self.reason}" if self.path else f" {self.reason}"


@cache
def _annotations(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(annotation), get_args(annotation)


def _dataclass(cls: type[_T], data: object) -> _T:
    if not isinstance(data, dict):
        raise _Invalid(f"is {shown(data)}; expected an object")
    values = {}
    for item in fields(cls):  # type: ignore[arg-type] # it is a dataclass
        value = data.get(item.name)
        if value is None and item.default is MISSING and item.default_factory is MISSING:
            if item.name not in data:
                raise _Invalid(f"has no {item.name}")
        elif value is None:
            continue
        try:
            values[item.name] = _value(_annotations(cls)[item.name], value)  # type: ignore[arg-type] # a class is hashable
        except _Invalid as error:
            raise error.inside(item.name) from error
    try:
        return cls(**values)
    except ValueError as error:  # of its __post_init__
        raise _Invalid(f"is refused: {error}") from error


def _value(annotation: Any, value: object) -> Any:
    """`value` as the annotation wants it: a plain type, a dataclass, Mapping, tuple, Any, or a union of these."""
    origin, arguments = _parts(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value)
    if is_dataclass(annotation):
        return _dataclass(annotation, value)  # type: ignore[arg-type] # a class, not an instance
    if origin is tuple:
        return _tuple(arguments, value)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(arguments[1], value)
    if annotation is float and type(value) is int:
        return float(value)
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise _Invalid(f"is {shown(value)}; expected {_NAMES.get(annotation, annotation.__name__)}")
    return value


def _one_of(annotations: tuple[Any, ...], value: object) -> Any:
    if value is None and type(None) in annotations:
        return None
    wrong = None
    for annotation in annotations:
        if annotation is not type(None):
            try:
                return _value(annotation, value)
            except _Invalid as error:
                wrong = wrong or error
    assert wrong is not None, "a union has members"
    raise wrong


def _tuple(annotations: tuple[Any, ...], value: object) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _Invalid(f"is {shown(value)}; expected a list")
    each = [annotations[0]] * len(value) if annotations[-1] is Ellipsis else list(annotations)
    if len(each) != len(value):
        raise _Invalid(f"is {shown(value)}; expected a list of {len(each)}")
    found = []
    for index, (annotation, item) in enumerate(zip(each, value, strict=True)):
        try:
            found.append(_value(annotation, item))
        except _Invalid as error:
            raise error.inside(str(index)) from error
    return tuple(found)


def _mapping(annotation: Any, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Invalid(f"is {shown(value)}; expected an object")
    found = {}
    for name, item in value.items():
        try:
            found[name] = _value(annotation, item)
        except _Invalid as error:
            raise error.inside(name) from error
    return found


_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
