"""Every step by which an output changes the disk, one function each, and a seam to stop between any two of them.

Tests use the seam: they count the steps of a command, then raise or kill at each.

    with watched(lambda step, path: kill() if next(count) == at else None):
        export_onnx(...)
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Watch = Callable[[str, Path], None]

# What a filesystem answers that cannot do it at all: FAT, SMB, 9p, FUSE, an old kernel.
UNSUPPORTED = {
    getattr(errno, name) for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY") if hasattr(errno, name)
}
NO_LINKS = UNSUPPORTED | {errno.EPERM, errno.EMLINK, errno.EXDEV}
NO_SYNC = UNSUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}  # Windows opens no folder: EACCES

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # linux/fs.h
_RENAME_SWAP, _RENAME_EXCL = 2, 4  # macOS, sys/stdio.h

_watch: Watch | None = None


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Call `watch(step, path)` before each step in this process: it may raise, or end the process."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


def begin(step: str, path: Path) -> None:
    """Say that a step comes now; those of this file say it themselves."""
    if _watch is not None:
        _watch(step, path)


def make_folder(path: Path) -> None:
    """Make a folder that must not be there yet."""
    begin("make folder", path)
    path.mkdir()


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write and sync. Not atomic by itself, and it follows links: for folders that are this process's own."""
    begin("write", path)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        begin("sync", path)
        _sync(file.fileno())


def sync_file(path: Path) -> None:
    """Sync a file that another has written."""
    begin("sync", path)
    handle = os.open(path, os.O_RDWR)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlive a power cut, where the system can be asked to."""
    begin("sync folder", path)
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def link(source: Path, target: Path) -> bool:
    """A second name for a file, never in place of another. False: this filesystem has none.

    Raises:
        FileExistsError: `target` is there.
    """
    begin("link", target)
    try:
        os.link(source, target, follow_symlinks=False)
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS or os.path.lexists(target):
            raise
        return False
    return True


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or a folder, never in place of another.

    Where neither the kernel nor the filesystem can promise that, it is looked for first.

    Raises:
        FileExistsError: `target` is there.
    """
    begin("rename", target)
    if sys.platform != "win32" and _rename_with(source, target, _NOREPLACE, _RENAME_EXCL):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def replace(source: Path, target: Path, folder: int | None = None) -> None:
    """Rename a file in place of whatever has that name: a link is replaced, not followed.

    Args:
        folder: handle of the folder that both are relative to.
    """
    begin("replace", target)
    os.replace(source, target, src_dir_fd=folder, dst_dir_fd=folder)


def exchange(one: Path, other: Path) -> bool:
    """Each takes the other's name, in one step. False: this system or this filesystem cannot do it."""
    begin("exchange", other)
    return _rename_with(one, other, _EXCHANGE, _RENAME_SWAP)


def remove(path: Path) -> None:
    """Remove a file's name, if it is there."""
    begin("remove", path)
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it; links in it are removed, not followed."""
    begin("remove tree", path)
    shutil.rmtree(path)


def remove_folder(path: Path) -> bool:
    """Remove a folder if it is empty. Returns: was it? One that another process has removed meanwhile was."""
    begin("remove folder", path)
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _rename_with(source: Path, target: Path, linux: int, macos: int) -> bool:
    """renameat2, or macOS's renamex_np. False: there is none, or the filesystem does not know the flag."""
    a, b = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin":
        function = getattr(ctypes.CDLL(None, use_errno=True), "renamex_np", None)
        arguments: tuple[object, ...] = (a, b, ctypes.c_uint(macos))
    elif sys.platform.startswith("linux"):
        function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28, musl 1.2.6
        arguments = (_AT_FDCWD, a, _AT_FDCWD, b, ctypes.c_uint(linux))
    else:
        return False
    if function is None:
        return False
    if function(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
