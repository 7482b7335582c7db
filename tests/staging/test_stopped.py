"""A run may be killed, or fail, before any step: there is the old output or the new one, and no litter."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gptexport.errors import OutputError
from gptexport.staging import steps, sweep
from tests.support.outputs import (
    ABSENT,
    BUNDLE,
    ENGINE,
    GRAPH,
    INLINE,
    TEXT,
    Kind,
    killed_at,
    listing,
    steps_of,
    stopped_at,
)

FULL, NO_EXCHANGE, NO_LINKS = "any filesystem of today", "no exchange", "no second names"
REPLACED = {
    "bundle": (BUNDLE, BUNDLE, FULL),
    "bundle without exchange": (BUNDLE, BUNDLE, NO_EXCHANGE),
    "graph with data": (GRAPH, GRAPH, FULL),
    "graph with data without second names": (GRAPH, GRAPH, NO_LINKS),
    "graph with data by one without": (GRAPH, INLINE, FULL),
    "graph without data by one with": (INLINE, GRAPH, FULL),
    "engine": (ENGINE, ENGINE, FULL),
    "file": (TEXT, TEXT, FULL),
}
FRESH = {"bundle": BUNDLE, "graph with data": GRAPH, "graph without data": INLINE, "engine": ENGINE, "file": TEXT}
over = pytest.mark.parametrize(
    ("old", "new", "filesystem"), REPLACED.values(), ids=REPLACED.keys(), indirect=["filesystem"]
)
fresh = pytest.mark.parametrize("kind", FRESH.values(), ids=FRESH.keys())


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves, the system has: only a power cut loses what was not synced."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def filesystem(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    able: str = request.param
    if able == NO_EXCHANGE:
        monkeypatch.setattr(steps, "exchange", lambda *_: False)
    if able == NO_LINKS:
        monkeypatch.setattr(steps, "link", lambda *_: False)
    return able


def each_kill(folder: Path, prepare: Callable[[Path], None], write: Callable[[Path], None]) -> list[Path]:
    """A folder for every step, in which a run was killed before that step."""
    killed: list[Path] = []
    for at in range(1000):
        place = folder / str(at)
        place.mkdir()
        prepare(place)
        if not killed_at(at, partial(write, place)):
            return killed
        killed.append(place)
    raise AssertionError("it never ended")


@over
def test_what_a_kill_leaves_is_the_old_or_the_new_and_the_next_run_clears_the_rest(
    old: Kind, new: Kind, filesystem: str, tmp_path: Path
) -> None:
    places = each_kill(
        tmp_path,
        lambda place: old.write(place / old.name, "old", False),
        lambda place: new.write(place / new.name, "new", True),
    )
    assert len(places) > 10, "few steps: is the seam called?"
    moment = {ABSENT} if filesystem == NO_EXCHANGE else set()  # then no system can do better
    assert {new.read(place / new.name) for place in places} - moment == {"old", "new"}
    for place in places:
        sweep(place)
        assert new.read(place / new.name) in ("old", "new"), place.name
        new.write(place / new.name, "newer", True)
        assert new.read(place / new.name) == "newer"
        assert not [name for name in listing(place) if ".gptexport-" in name], place.name
    if filesystem != NO_LINKS:
        assert {tuple(listing(place)) for place in places} == {tuple(_listing_of(new, tmp_path / "clean"))}


@fresh
def test_a_kill_leaves_the_new_one_or_none(kind: Kind, tmp_path: Path) -> None:
    places = each_kill(tmp_path, lambda _: None, lambda place: kind.write(place / kind.name, "new", False))
    assert len(places) > 5
    for place in places:
        assert kind.read(place / kind.name) in (ABSENT, "new")
        sweep(place)
        if kind.read(place / kind.name) == ABSENT:
            assert listing(place) == []
            kind.write(place / kind.name, "new", False)
        assert kind.read(place / kind.name) == "new"
        assert listing(place) == _listing_of(kind, tmp_path / "clean")


def test_a_kill_while_an_empty_folder_is_filled_leaves_it_empty_or_full(tmp_path: Path) -> None:
    def write(place: Path) -> None:
        BUNDLE.write(place, "new", False)

    for place in each_kill(tmp_path, lambda _: None, write):
        assert BUNDLE.read(place) in (ABSENT, "new")
        sweep(place)
        if BUNDLE.read(place) == ABSENT:
            assert listing(place) == []
            write(place)
        assert listing(place) == ["gptexport.json", "logits.onnx", "weights.data"]


def test_strangers_in_a_bundle_outlive_every_kill(tmp_path: Path) -> None:
    def prepare(place: Path) -> None:
        BUNDLE.write(place / "gpt", "old", False)
        (place / "gpt" / "notes.txt").write_text("mine")
        (place / "gpt" / "deep" / "er").mkdir(parents=True)
        (place / "gpt" / "deep" / "er" / "weights.data").write_text("mine too")
        (place / "gpt" / "link").symlink_to("notes.txt")

    def write(place: Path) -> None:
        BUNDLE.write(place / "gpt", "new", True)

    for place in each_kill(tmp_path, prepare, write):
        for _ in range(2):
            assert (place / "gpt" / "notes.txt").read_text() == "mine"
            assert (place / "gpt" / "deep" / "er" / "weights.data").read_text() == "mine too"
            assert (place / "gpt" / "link").readlink() == Path("notes.txt")
            sweep(place)
        assert listing(place)[0] == "gpt"
        assert not [name for name in listing(place) if ".gptexport-" in name]


@over
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device"), RuntimeError])
def test_a_failure_at_any_step_leaves_the_old_or_the_new_and_no_litter(
    old: Kind, new: Kind, filesystem: str, stop: type[BaseException], tmp_path: Path
) -> None:
    def fail() -> None:
        raise stop

    def write(place: Path) -> None:
        new.write(place / new.name, "new", True)

    (tmp_path / "count").mkdir()
    old.write(tmp_path / "count" / old.name, "old", False)
    for at in range(len(steps_of(partial(write, tmp_path / "count")))):
        place = tmp_path / str(at)
        place.mkdir()
        old.write(place / old.name, "old", False)
        with pytest.raises((KeyboardInterrupt, RuntimeError, OutputError)):
            stopped_at(at, partial(write, place), fail)
        assert new.read(place / new.name) in ("old", "new"), at
        sweep(place)
        assert new.read(place / new.name) in ("old", "new"), at
        assert not [name for name in listing(place) if ".gptexport-" in name], (at, listing(place))


@over
def test_a_disk_that_fails_for_good_at_any_step_loses_nothing(
    old: Kind, new: Kind, filesystem: str, tmp_path: Path
) -> None:
    def fail() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for at in range(100):
        place = tmp_path / str(at)
        place.mkdir()
        old.write(place / old.name, "old", False)
        try:
            stopped_at(at, partial(new.write, place / new.name, "new", True), fail, ever_after=True)
        except OutputError:
            assert new.read(place / new.name) in ("old", "new") or filesystem == NO_EXCHANGE, at
            sweep(place)  # the disk works again
            assert new.read(place / new.name) in ("old", "new"), at
            assert not [name for name in listing(place) if ".gptexport-" in name], at
        else:
            assert at > 8
            return
    raise AssertionError("it never ended")


def _listing_of(kind: Kind, place: Path) -> list[str]:
    if not place.exists():
        place.mkdir()
        kind.write(place / kind.name, "new", False)
    return listing(place)
