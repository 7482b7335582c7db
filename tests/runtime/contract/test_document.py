"""One parser reads the manifest and the sidecar: what is there is of the type that it is declared as, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptexport_runtime import ArtifactError
from gptexport_runtime.contract.document import Format


@dataclass(frozen=True)
class File:
    name: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; expected 0 or more")


@dataclass(frozen=True)
class Shelf:
    files: Mapping[str, File]
    first: File | None
    sizes: tuple[int, int]
    tags: tuple[str, ...] = ()
    open: bool = True
    axes: tuple[str | int, ...] = ("B",)
    notes: Mapping[str, Any] = field(default_factory=dict)


SHELF = Format(what="a shelf", name="shelf", version=2, again="build it again")
RIGHT: dict[str, Any] = {"files": {"a": {"name": "x", "size": 1}}, "first": None, "sizes": [1, 2]}


def build(**changes: Any) -> Shelf:
    return SHELF.build(Shelf, {**RIGHT, **changes}, "shelf.json")


def test_a_document_becomes_what_it_describes() -> None:
    made = build(first={"name": "y", "size": 2}, tags=["p", "q"], open=False, axes=["B", 7], notes={"any": [1, {}]})
    assert made == Shelf({"a": File("x", 1)}, File("y", 2), (1, 2), ("p", "q"), False, ("B", 7), {"any": [1, {}]})


def test_null_and_absence_are_the_default_and_unknown_keys_are_ignored() -> None:
    assert build(tags=None, notes=None, of_a_newer_version=[1]) == build()


WRONG = {
    "missing": ({"files": {"a": {"name": "x"}}}, "shelf.json: files.a has no size. It is damaged: build it again."),
    "null": ({"sizes": None}, "sizes is None; expected a list"),
    "no object": ({"files": ["a"]}, "files is ['a']; expected an object"),
    "no list": ({"tags": "pq"}, "tags is 'pq'; expected a list"),
    "another length": ({"sizes": [1]}, "sizes is [1]; expected a list of 2"),
    "inside a list": ({"tags": ["p", 1]}, "tags.1 is 1; expected a string"),
    "a bool for an int": ({"sizes": [1, True]}, "sizes.1 is True; expected an integer"),
    "a float for an int": ({"sizes": [1, 2.0]}, "sizes.1 is 2.0; expected an integer"),
    "an int for a bool": ({"open": 1}, "open is 1; expected true or false"),
    "neither of two": ({"axes": [None]}, "axes.0 is None; expected a string"),
    "refused": ({"first": {"name": "x", "size": -1}}, "first is refused: size is -1; expected 0 or more"),
    "long": ({"tags": "p" * 200}, "...; expected a list"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        build(**changes)
    assert message in str(caught.value)


TEXTS = {
    "no JSON": ("{", "shelf.json is not JSON"),
    "too deep": ("[" * 100_000, "shelf.json is not JSON"),
    "no object": ("[]", 'shelf.json is not a shelf: expected "format": "shelf"'),
    "another format": ('{"format": "box"}', 'is not a shelf: expected "format": "shelf"'),
    "another version": (
        '{"format": "shelf", "format_version": 3}',
        "has format_version 3; this gptexport reads 2. Build it again with this version, or upgrade gptexport-runtime.",
    ),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_another_document_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        SHELF.load(text, "shelf.json")
    assert message in str(caught.value)


KEYS = st.sampled_from(["name", "size", "a", ""])
JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 2, 1.5, "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["files", "first", "sizes", "tags", "open", "axes", "notes"]), JSON))
def test_anything_is_a_document_or_an_artifact_error(data: dict[str, Any]) -> None:
    try:
        made = SHELF.build(Shelf, data, "shelf.json")
    except ArtifactError:
        return
    assert SHELF.build(Shelf, json.loads(json.dumps(asdict(made))), "shelf.json") is not None
