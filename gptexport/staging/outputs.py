"""What commands write: a bundle, a graph, an engine; a report, a saved measurement, a chart, a timing cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptexport.errors import OutputError, OutputExistsError
from gptexport.staging import steps
from gptexport.staging.bundle import OLD, SWAP, check_bundle, is_empty, put_bundle, settle_bundle
from gptexport.staging.files import ONE, check_file, check_new, confirm, put_new, replace_one, settle_files, update_one
from gptexport.staging.pair import check_engine, check_graph, put_engine, put_graph, settle_engine, settle_graph
from gptexport.staging.stage import Stage, dead_stages, one_at_a_time, open_stage
from gptexport_runtime.artifact import ENGINE_SUFFIX

MADE = "new"  # folder of a stage: what is being written
LONGEST_NAME = 200  # bytes; filesystems take 255, and companions have longer names


class _Check(Protocol):
    def __call__(self, out: Path, *, force: bool) -> None: ...


class _Put(Protocol):
    def __call__(self, stage: Stage, made: Path, out: Path, *, force: bool) -> None: ...


@dataclass(frozen=True)
class Kind:
    """A kind of output: what may be replaced, and how it is put in place."""

    check: _Check
    put: _Put
    is_folder: bool


BUNDLE = Kind(check_bundle, put_bundle, is_folder=True)
KINDS = {
    ".onnx": Kind(check_graph, put_graph, is_folder=False),
    ENGINE_SUFFIX: Kind(check_engine, put_engine, is_folder=False),
    ".gguf": Kind(check_new, put_new, is_folder=False),
}


def kind_of(out: Path) -> Kind:
    """By the name's ending; without one of these it is a bundle's folder."""
    return KINDS.get(out.suffix, BUNDLE)


def check_output(out: Path, *, force: bool) -> None:
    """Refuse, before the work, a place where nothing may be written, or what exists unless `force` is given.

    What a killed run has left there is cleared away first.

    Raises:
        OutputExistsError: it is there, and `force` is not given or it is not gptexport's to replace.
        OutputError: nothing can be written there.
    """
    _prepare(out, force=force)


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write an output's files into, which are in place once the `with` has ended well.

    On any error, Ctrl-C included, it is gone and `out` is as it was.

    Raises:
        OutputExistsError: at once, before the work, if `out` exists and is not to be replaced; or at the end, if
            something has appeared there.
        OutputError: there is no room, or no permission, or no place for it.
    """
    kind = kind_of(out)
    place, home = _prepare(out, force=force)
    stage = open_stage(home)
    parents: list[Path] = []
    done = False
    try:
        with _own_errors(f"writing {out} failed", "Nothing was left behind"), _settled(stage, parents):
            made = stage.folder(MADE)
            if kind.is_folder:
                made = made / place.name
                steps.make_folder(made)
            yield made
            with one_at_a_time(stage.home):
                _make_parents(place.parent, parents)
                kind.put(stage, made, place, force=force)
                done = True
                parents.clear()
    except KeyboardInterrupt:
        if done:
            raise KeyboardInterrupt(f"{out} was written before.") from None
        raise


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Put `data` in place of a file: the old one is there until the new one is.

    A link of that name is replaced, never followed.

    Raises:
        OutputError: there is no room, or no permission.
    """
    with _stage_of(path) as stage:
        replace_one(stage, path.name, data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file at, too large for memory, that takes the place of `path` once the `with` has ended well.

    Raises:
        OutputError: there is no room, or no permission.
    """
    with _stage_of(path) as stage:
        made = stage.folder(ONE) / path.name
        yield made
        steps.sync_file(made)
        steps.replace(made, path)
        confirm(stage.home)


def update_file(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Put `change` of a file's bytes in its place: the old ones are there until the new ones are.

    If its folder is replaced meanwhile, the new one is left alone. `change` may refuse by an exception.

    Raises:
        OutputError: there is no room, no permission, or no such file.
    """
    with _stage_of(path) as stage:
        update_one(stage, path.name, change)


@contextmanager
def _stage_of(path: Path) -> Iterator[Stage]:
    sweep(path.parent)
    stage = open_stage(path.parent)
    with _own_errors(f"writing {path} failed", "It is as it was"), one_at_a_time(path.parent), _settled(stage, []):
        yield stage


@contextmanager
def _own_errors(what: str, state: str) -> Iterator[None]:
    """What the system says becomes ours."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OutputError(f"{what}: {error.strerror}. {state}.") from error


@contextmanager
def _settled(stage: Stage, parents: list[Path]) -> Iterator[None]:
    """Leave no stage behind, nor folders that were made for nothing."""
    try:
        yield
    except BaseException as error:
        try:
            _settle(stage)
        except OSError as failed:
            raise OutputError(
                f"{error or type(error).__name__}; and clearing it away failed too: {failed.strerror}. "
                f"What belongs to an old output may be in {stage.path}: the next run puts it back."
            ) from error
        finally:
            stage.release()
            for folder in reversed(parents):
                with contextlib.suppress(OSError):
                    steps.remove_folder(folder)
        raise
    try:
        left = _settle(stage)
    except OSError as error:
        raise OutputError(
            f"all is written, but clearing away the old one failed: {error.strerror}. The next run will do it."
        ) from error
    finally:
        stage.release()
    if left:
        raise OutputError(f"all is written, but what appeared in the old one meanwhile is now in {left[0]}.")


def write_output(path: Path, data: bytes | memoryview, *, is_ours: Callable[[Path], bool], what: str) -> None:
    """Write a file that the user named. Their links are followed; one that gptexport did not write is never replaced.

    Args:
        is_ours: did gptexport write this file, as such a file?
        what: it holds, in words.

    Raises:
        OutputExistsError: something else is there.
        OutputError: there is no room, or no permission.
    """
    replace_file(check_file(path, is_ours, what), data)


def check_output_file(path: Path, *, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse before the work what `write_output` would refuse after it."""
    check_file(path, is_ours, what)


def sweep(folder: Path) -> None:
    """Clear away what killed processes have left in a folder; old outputs that they had moved are put back."""
    for stage in dead_stages(folder):
        try:
            with contextlib.suppress(OSError), one_at_a_time(folder):  # of another user, or swept by another
                _settle(stage)
        finally:
            stage.release()


def _settle(stage: Stage) -> list[Path]:
    """Bring what was begun to the old or to the new, and remove the stage.

    Returns: where in the stage there is still something of a stranger's, which has no other place.
    """
    if not stage.path.is_dir():  # its folder was renamed, or deleted
        return []
    for folder in (*stage.found(SWAP), *stage.found(OLD)):
        sweep(folder)
    for settle in (settle_files, settle_graph, settle_engine, settle_bundle):
        settle(stage)
    for name in (MADE, ONE):
        stage.clear(name)
    left = [folder for folder in (*stage.found(SWAP), *stage.found(OLD)) if not is_empty(folder)]
    stage.close()
    return left


def _prepare(out: Path, *, force: bool) -> tuple[Path, Path]:
    """The absolute path of an output, whose place is swept and may be taken; and where its stage goes."""
    place, kind = _place(out), kind_of(out)
    home = _home(place, kind)
    for folder in (home, place):
        sweep(folder)
    kind.check(place, force=force)
    return place, _home(place, kind)  # a sweep may have emptied it, or put an old one back


def _place(out: Path) -> Path:
    """The absolute path of an output, links on the way followed.

    Raises:
        OutputError: no output can have this name.
    """
    if out.name == ".." or "\0" in str(out):
        raise OutputError(f"{out} is no name for an output. Name a folder of its own.")
    if len(os.fsencode(out.name)) > LONGEST_NAME:
        raise OutputError(f"{out.name[:40]}… is too long a name; expected at most {LONGEST_NAME} bytes.")
    if out.is_symlink() and kind_of(out).is_folder:
        if not out.exists():
            raise OutputExistsError(f"{out} is a link that leads nowhere. Name the folder itself.")
        place = Path(os.path.realpath(out))
    else:
        place = Path(os.path.realpath(out.parent)) / out.name if out.name else Path(os.path.realpath(out))
    try:
        str(place).encode("utf-8")
    except UnicodeEncodeError as error:
        raise OutputError(f"{place!s:.200} is not UTF-8, and ONNX opens no such path. Choose another place.") from error
    return place


def _home(place: Path, kind: Kind) -> Path:
    """Where the stage goes: beside the output, or in an empty folder that is there already.

    Raises:
        OutputError: what is to hold it is no folder.
    """
    if kind.is_folder and place.is_dir() and is_empty(place):
        return place
    home = place.parent
    while not os.path.lexists(home):
        home = home.parent
    if not home.is_dir():
        raise OutputError(f"{home} is not a folder; expected one to write {place.name} into.")
    return home


def _make_parents(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; they are added to `made`."""
    for path in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
        steps.make_folder(path)
        made.append(path)
