"""Files that take their names one after another, all of them or none; and one file in place of another."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptexport.errors import OutputError, OutputExistsError
from gptexport.staging import steps
from gptexport.staging.stage import Stage, identity

PUT, ONE, PLAN = "put", "one", "put.json"  # in a stage


def put_files(stage: Stage, made: Path, folder: Path, names: list[str]) -> None:
    """Give files of the folder `made`, in the stage, their names in `folder`, in this order: all, or none.

    Args:
        folder: the stage's home, or one below it.

    Not by second names: onnx opens no weights that have two.

    Raises:
        OutputExistsError: one of the names is taken.
    """
    below = folder.relative_to(stage.home)
    stage.note(PLAN, {str(below / name): made / name for name in names})
    put = stage.path / PUT
    steps.rename_new(made, put)
    for name in names:
        try:
            steps.rename_new(put / name, folder / name)
        except FileExistsError as error:
            raise OutputExistsError(
                f"{folder / name} has appeared in the meantime. It is as it was; choose another place."
            ) from error
    confirm(folder)


def settle_files(stage: Stage) -> None:
    """Take back files that were put in place, if the last of them did not get there."""
    plan = stage.noted(PLAN)
    waiting = {path.name for path in stage.found(PUT)}
    moved = [path for path in plan if Path(path).name not in waiting]
    for path in moved if len(moved) < len(plan) else ():  # all of them: it was done, or had not begun
        if identity(stage.home / path) == plan[path]:
            steps.remove(stage.home / path)
    for name in (PUT, PLAN):
        stage.clear(name)


def check_new(out: Path, *, force: bool) -> None:
    """Refuse a place where there is something: such a file is never replaced.

    Raises:
        OutputExistsError: there is.
    """
    if os.path.lexists(out):
        raise OutputExistsError(f"{out} exists already. Move it away, or choose another place.")


def put_new(stage: Stage, made: Path, out: Path, *, force: bool) -> None:
    """Put the file of that name, in the folder `made`, in its place.

    Raises:
        OutputExistsError: something has appeared there in the meantime.
    """
    check_new(out, force=force)
    put_files(stage, made, out.parent, [out.name])


def replace_one(stage: Stage, name: str, data: bytes | memoryview) -> None:
    """Put `data` in place of a file beside the stage. A link of that name is replaced, not followed."""
    with _held(stage.home) as folder:
        _put(stage, name, data, folder)


def update_one(stage: Stage, name: str, change: Callable[[bytes], bytes]) -> None:
    """Put `change` of a file's bytes in its place. A link of that name is replaced, not followed.

    The folder is held by a handle from the reading to the writing: if another folder takes its name meanwhile, nothing
    is written into the other.

    Raises:
        OutputError: there is no such file.
    """
    with _held(stage.home) as folder:
        path = stage.home / name
        handle = os.open(path if folder is None else name, os.O_RDONLY | _PATIENT, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OutputError(f"{path} is not a regular file.")
            old = file.read()
        new = change(old)
        if not stage.path.is_dir():
            raise OutputError(f"{stage.home} was replaced in the meantime; the new one is left alone.")
        _put(stage, name, new, folder)


_PATIENT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO is opened without waiting for its writer


@contextmanager
def _held(folder: Path) -> Iterator[int | None]:
    """A handle of a folder; None on Windows, where names cannot be relative to one."""
    if os.rename not in os.supports_dir_fd:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def _put(stage: Stage, name: str, data: bytes | memoryview, folder: int | None) -> None:
    path, made = stage.home / name, stage.folder(ONE) / name
    steps.write_file(made, data)
    if path.is_file():
        made.chmod(stat.S_IMODE(path.stat().st_mode))
    if folder is None:
        steps.replace(made, path)
    else:
        steps.replace(made.relative_to(stage.home), Path(name), folder)
    confirm(stage.home)


def check_file(path: Path, is_ours: Callable[[Path], bool], what: str) -> Path:
    """Where a file that the user named is to be written: links of theirs are followed.

    Args:
        is_ours: did gptexport write this regular file, as such a file?
        what: it holds, in words.

    Raises:
        OutputExistsError: something else is there.
        OutputError: there is no such folder.
    """
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder.")
    if os.path.lexists(place) and not (place.is_file() and is_ours(place)):
        raise OutputExistsError(f"{path} is there, and holds no {what} to replace. Choose another name.")
    return place


def confirm(folder: Path) -> None:
    """Sync a folder in which everything is in place.

    Raises:
        OutputError: the disk fails.
    """
    try:
        steps.sync_folder(folder)
    except OSError as error:
        raise OutputError(
            f"all is in place in {folder}, but the disk has not confirmed it: {error.strerror}."
        ) from error
