"""Outputs are whole or not there at all: written under a temporary name, synced, and renamed. Torch-free."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptexport.errors import ExportError, OutputExistsError
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.engine_file import ENGINE_SUFFIX, sidecar_path


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write and fsync. Not atomic by itself: use inside `staged`."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write into, on the disk of `out`. On success `commit` has moved its contents; on any error,
    Ctrl-C included, it is gone and `out` is as it was.

    Raises:
        OutputExistsError: at once, before the work, if `out` exists and is not to be replaced.
        ExportError: there is no room, or no permission.
    """
    check_output(out, force=force)
    home = out.absolute().parent
    while not home.is_dir():
        home = home.parent
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=home))
    except OSError as error:
        raise ExportError(f"cannot write into {home}: {error.strerror}. Choose another place with -o.") from error
    try:
        yield stage
    except OSError as error:
        if error.errno is None:
            raise
        raise ExportError(f"writing {out} failed: {error.strerror}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def data_file(graph_file: Path) -> Path:
    """Where a graph outside a bundle keeps weights that are too large to go inside."""
    return graph_file.with_name(graph_file.name + ".data")


def check_output(out: Path, *, force: bool) -> None:
    """Refuse what exists, unless --force; and with --force replace only what gptexport wrote."""
    companion = {".onnx": data_file, ENGINE_SUFFIX: sidecar_path}.get(out.suffix)
    if not os.path.lexists(out) and not (companion and os.path.lexists(companion(out))):
        return
    if companion:
        if out.is_dir():
            raise OutputExistsError(f"{out} is a folder; expected a file name, or a folder name without {out.suffix}.")
    elif not out.is_dir():
        raise OutputExistsError(
            f"{out} is a file; a bundle is a folder. Choose another -o (or a name that ends in .onnx)."
        )
    elif not any(out.iterdir()):
        return
    elif not (out / MANIFEST_FILE).is_file():
        raise OutputExistsError(
            f"{out} is a folder with other things in it, which gptexport never replaces. Choose another -o."
        )
    if not force:
        raise OutputExistsError(f"{out} exists already. Pass --force to replace it, or choose another -o.")


def commit_folder(stage: Path, out: Path) -> None:
    """Put the staged bundle in place of `out`: the old one is there until the new one is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    bundle = stage / out.name
    old = stage / f"{out.name}.old"
    try:
        if out.exists():
            out.rename(old)
        bundle.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    _sync_folder(out.parent)


def commit_files(stage: Path, out: Path, names: list[str]) -> None:
    """Put staged files beside `out`, in this order: name the graph last, after the data that it reads."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (stage / name).replace(out.parent / name)
    _sync_folder(out.parent)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Put `data` in place of a file: an old one is there until the new one is."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_file(temporary, data)
        temporary.replace(path)
    except OSError as error:
        raise ExportError(f"writing {path} failed: {error.strerror}. It is as it was.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
