"""Files that anybody may have made: only regular ones are opened, none is waited for, none is believed to be small."""

from __future__ import annotations

import errno
import os
import stat
import time
import weakref
from io import BufferedReader
from pathlib import Path

from gptexport_runtime.errors import ArtifactError, InputError, shown

INTERVAL = 0.0005  # seconds; the times of files are no finer
DESCRIPTION_BYTES = 16 << 20  # more than any manifest or sidecar has

_PATIENT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO is opened without waiting for its writer


def as_path(value: object, name: str = "path") -> Path:
    """A caller's path, as one.

    Raises:
        InputError: it is neither a string nor a path.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name} is {shown(value)}; expected a string or a pathlib.Path.")
    return Path(value)


def status(path: Path) -> os.stat_result | None:
    """What the system says of it; None: there is no such thing, and no name of that kind."""
    try:
        return path.stat()
    except (OSError, ValueError):  # too long, a loop of links, a NUL
        return None


def is_folder(path: Path) -> bool:
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: Path) -> bool:
    """Is it a regular file, or a link to one? No FIFO, no device."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def leads_outside(path: Path) -> bool:
    """Is it a link, or a chain of them, to something that is not in its own folder or below it?

    What is in a download of the Hugging Face hub may be in the store of that download, `snapshots/REVISION` beside
    `blobs`.
    """
    if not path.is_symlink():
        return False
    folder = Path(os.path.realpath(path.parent))
    stores = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    return not any(Path(os.path.realpath(path)).is_relative_to(place) for place in (folder, *stores))


Identity = tuple[int, int, int, int]  # device, inode, size, time of the last change


def identity(found: os.stat_result) -> Identity:
    """What of a file differs once another has its name, or once it has been written to."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a device may already do something
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        handle = os.open(path, os.O_RDONLY | _PATIENT | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


class MappedFile:
    """A file that ONNX Runtime has mapped into memory: what is written into it changes an open model.

    Replacing it by a rename does not, for the map is of the old file. Freed with the last reference.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ArtifactError: it cannot be opened.
        """
        try:
            with open_regular(path) as file:
                self._handle = os.dup(file.fileno())
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
        weakref.finalize(self, os.close, self._handle)
        self.identity = identity(os.fstat(self._handle))
        self.path = path
        self._checked = 0.0

    def check(self) -> None:
        """See that nothing was written into it since. Takes some microseconds, once every `INTERVAL` at most.

        Raises:
            ArtifactError: something was.
        """
        now = time.monotonic()
        if now - self._checked < INTERVAL:
            return
        self._checked = now
        if identity(os.fstat(self._handle)) != self.identity:
            raise ArtifactError(
                f"{self.path} was written into while a session has it open: its numbers are of no model. Replace files "
                "by renaming others over them, as gptexport does, and open another session with load()."
            )


def read_small(path: Path, limit: int) -> bytes:
    """All of a file that has no business being large.

    Raises:
        OSError: as `open_regular`; or it has more than `limit` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # as much memory is taken first as is asked for, and `limit` may be said
        data = file.read(min(limit, size) + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes, which no such file needs", str(path))
    return data


def read_text(path: Path, limit: int) -> str:
    """The same, as UTF-8.

    Raises:
        ArtifactError: it cannot be read, is too large, or is not UTF-8; the message says why.
    """
    try:
        return read_small(path, limit).decode("utf-8")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{path} cannot be read: it is not UTF-8 ({error.reason} at byte {error.start})."
        ) from error
