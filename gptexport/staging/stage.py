"""A private folder beside an output, in which it is made; and how those that a killed process left are known.

A stage's name is drawn at random and made exclusively, so that no link can be put in its way. While its process
lives it holds a lock in there, which the system drops with the process: a stage whose lock can be taken is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from gptexport.errors import OutputError
from gptexport.staging import steps

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PREFIX, SUFFIX = ".gptexport-", ".tmp"
TOKEN = "[a-z0-9_]{8}"  # as tempfile draws them
NAME = re.compile(re.escape(PREFIX) + TOKEN + re.escape(SUFFIX))
LOCK = "lock"
PATIENCE = 5.0  # seconds
UNLOCKED = b"no locks here"  # whether its process lives cannot be known then, and it is never swept


class Stage:
    """One such folder, for as long as this process works in it, or clears it away."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.home = path.parent  # where the output will be
        self._lock = lock

    @property
    def token(self) -> str:
        """The random part of its name: what is named by it outside the stage was made by its process."""
        return self.path.name[len(PREFIX) : -len(SUFFIX)]

    def folder(self, name: str) -> Path:
        """A folder in the stage, made when first asked for."""
        path = self.path / name
        if not path.is_dir():
            steps.make_folder(path)
        return path

    def found(self, name: str) -> list[Path]:
        """What a folder of the stage holds, if it is there."""
        path = self.path / name
        return sorted(path.iterdir()) if path.is_dir() and not path.is_symlink() else []

    def clear(self, name: str) -> None:
        """Remove a file of the stage, or a folder and all that is in it."""
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            steps.remove_tree(path)
        elif os.path.lexists(path):
            steps.remove(path)

    def note(self, name: str, files: Mapping[str, Path]) -> None:
        """Write down which files these are, by the paths, from the stage's home, that they have or will have."""
        noted = {to: identity(path) for to, path in files.items()}
        steps.write_file(self.path / name, json.dumps(noted).encode())

    def noted(self, name: str) -> dict[str, list[int] | None]:
        """What `note` has written: by path, the identity. Paths that lead out of the stage's home are not ours."""
        path = self.path / name
        try:
            found = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else {}
        except (OSError, ValueError, RecursionError):  # it was never finished, so that nothing was done of it
            return {}
        if not isinstance(found, dict):
            return {}
        return {to: who for to, who in found.items() if isinstance(who, list) and _is_below(to)}

    def close(self) -> list[Path]:
        """Remove the stage, its lock last.

        Returns: folders of it that are not empty, and stay with the stage: what they hold has no other place.
        """
        inside = [path for path in sorted(self.path.iterdir()) if path.name != LOCK]
        kept = [path for path in inside if not path.is_dir() or path.is_symlink() or not steps.remove_folder(path)]
        if os.name == "nt":  # which removes no open file
            self.release()
        if not kept:
            steps.remove(self.path / LOCK)
            steps.remove_folder(self.path)
        self.release()
        return kept

    def release(self) -> None:
        """Let others sweep it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_stage(home: Path) -> Stage:
    """Make a stage in a folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        while (stage := _make_stage(home)) is None:
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {home}: {error.strerror}. Choose another place.") from error
    return stage


def _make_stage(home: Path) -> Stage | None:
    """None: another process has swept it in the meantime, for it held no lock yet."""
    steps.begin("make stage", home)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=home))
    steps.begin("make lock", path)
    lock = _open_lock(path / LOCK, os.O_CREAT | os.O_EXCL)
    if lock is None:
        return None
    try:
        steps.begin("lock", path)
        try:
            _take(lock)
        except BlockingIOError:
            return None
        except OSError:
            os.write(lock, UNLOCKED)
        if _is(path / LOCK, lock):
            stage, lock = Stage(path, lock), -1
            return stage
        return None
    finally:
        if lock >= 0:
            os.close(lock)


def dead_stages(home: Path) -> Iterator[Stage]:
    """The stages in a folder whose processes have ended, each locked so that one process alone clears it."""
    try:
        names = [entry.name for entry in os.scandir(home) if NAME.fullmatch(entry.name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            stage = adopt(home / name)
            if stage is not None:
                yield stage


def adopt(path: Path) -> Stage | None:
    """Take over a stage, if it is one of this user's and its process has ended."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        return None
    lock = _open_lock(path / LOCK, 0)
    if lock is None:
        path.rmdir()  # its process had got no further; if it lives, it makes another
        return None
    try:
        if os.read(lock, len(UNLOCKED)) != UNLOCKED:
            _take(lock)
            if _is(path / LOCK, lock):
                return Stage(path, lock)
    except OSError:
        pass
    os.close(lock)
    return None


def _is_below(path: str) -> bool:
    return bool(path) and not Path(path).is_absolute() and not {"..", ""} & set(Path(path).parts) and "\0" not in path


def identity(path: Path) -> list[int] | None:
    """What stays the same of a file when it is renamed; None: it is not there, or is not a file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else None


def is_same(path: Path, other: Path) -> bool:
    """Are they two names of one file, not a folder?"""
    try:
        one, two = path.lstat(), other.lstat()
    except OSError:
        return False
    return not stat.S_ISDIR(one.st_mode) and os.path.samestat(one, two)


@contextlib.contextmanager
def one_at_a_time(home: Path) -> Iterator[None]:
    """One at a time of the processes that put something in place in a folder, where folders can be locked.

    A process that was stopped with the lock in its hands is waited for, but not for ever.
    """
    handle = -1
    with contextlib.suppress(OSError):
        handle = os.open(home, os.O_RDONLY)  # not on Windows, which opens no folder
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                _take(handle)
                break
            except BlockingIOError:
                time.sleep(0.01)
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def is_stage(path: Path) -> bool:
    """Is it named as a stage is?"""
    return NAME.fullmatch(path.name) is not None


def _open_lock(path: Path, flags: int) -> int | None:
    """None: it is not there."""
    flags |= os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None


def _take(lock: int) -> None:
    """Lock without waiting.

    Raises:
        OSError: another has it, which is a BlockingIOError but on Windows; or there are no locks here.
    """
    if sys.platform == "win32":
        msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is(path: Path, handle: int) -> bool:
    """Is the open file still the one of that name?"""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
