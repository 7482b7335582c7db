"""A bundle's folder, put in place in one step: a new one by a rename, one in place of another by an exchange.

What of an old bundle's folder gptexport did not write is a stranger's. It is linked into the new folder before the
exchange, so that it is never without its place, and nothing is deleted that has no second name there.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from gptexport.errors import OutputError, OutputExistsError
from gptexport.staging import steps
from gptexport.staging.files import confirm, put_files
from gptexport.staging.stage import Stage, is_same, is_stage
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import (
    CHARACTERS,
    GENAI_CONFIG_FILE,
    GENAI_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
)

OF_TOKENIZERS = ("tokenizer.json", "tokenizer.model", CHARACTERS)
OWN = frozenset({MANIFEST_FILE, WEIGHTS_FILE, *OF_TOKENIZERS, *(head.file for head in heads.HEADS.values())})
OF_GENAI = frozenset({GENAI_FILE, GENAI_CONFIG_FILE, "tokenizer_config.json"})  # ours beside GENAI_FILE alone
SWAP, OLD = "swap", "old"  # folders of a stage


def check_bundle(out: Path, *, force: bool) -> None:
    """Refuse a place where no bundle may be written.

    Raises:
        OutputExistsError: it is there, and `force` is not given or it is not gptexport's to replace.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise OutputExistsError(
            f"{out} is a file; a bundle is a folder. Choose another place (or a name that ends in .onnx)."
        )
    if is_empty(out):
        return
    if not (out / MANIFEST_FILE).is_file():
        raise OutputExistsError(
            f"{out} is a folder with other things in it, which gptexport never replaces. Choose another place."
        )
    if not force:
        raise OutputExistsError(f"{out} exists already. Pass --force to replace it, or choose another place.")
    if _holds_working_folder(out):
        raise OutputExistsError(
            f"{out} is the folder that you are in, or holds it: its bundle cannot be replaced in one step. "
            "Go elsewhere first, or choose another place."
        )
    for path in strangers(out):
        if path.name in OWN:
            raise OutputExistsError(
                f"{path} is not a file, and has the name of one of a bundle's. Move it away, or choose another place."
            )


def _holds_working_folder(folder: Path) -> bool:
    try:
        here = Path.cwd()
    except OSError:  # it has been deleted
        return False
    return any(folder.samefile(one) for one in (here, *here.parents))


def is_empty(folder: Path) -> bool:
    """Stages of our own do not count."""
    return all(is_stage(path) for path in folder.iterdir())


def strangers(folder: Path) -> list[Path]:
    """What in a bundle's folder gptexport did not write."""
    own = _names_in(folder)
    return [path for path in sorted(folder.iterdir()) if not _is_own(path, own) and not is_stage(path)]


def _names_in(folder: Path) -> frozenset[str]:
    """What files that gptexport wrote may be called there."""
    return OWN | OF_GENAI if (folder / GENAI_FILE).is_file() else OWN


def _is_own(path: Path, names: frozenset[str]) -> bool:
    return path.name in names and (path.is_symlink() or path.is_file())


def put_bundle(stage: Stage, made: Path, out: Path, *, force: bool) -> None:
    """Put the folder `made`, of the stage, in place of `out`.

    Raises:
        OutputExistsError: something has appeared there in the meantime.
    """
    steps.sync_folder(made)
    if stage.home == out:
        names = sorted(path.name for path in made.iterdir())
        put_files(stage, made, out, sorted(names, key=lambda name: name == MANIFEST_FILE))
        return
    try:
        steps.rename_new(made, out)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        check_bundle(out, force=force)
        if is_empty(out):
            raise OutputExistsError(f"{out} has appeared in the meantime. It is as it was; export again.") from error
        _replace(stage, made, out)
    confirm(out.parent)


def _replace(stage: Stage, made: Path, out: Path) -> None:
    """In place of an old bundle."""
    swap = stage.folder(SWAP) / out.name
    steps.rename_new(made, swap)
    for path in strangers(out):
        if os.path.lexists(swap / path.name):
            raise OutputExistsError(
                f"{path} was not written by gptexport, and the new bundle has a file of that name. Move it away, or "
                "choose another place."
            )
        _keep(path, swap / path.name)
    steps.sync_folder(swap)
    try:
        if not steps.exchange(swap, out):
            steps.rename_new(out, stage.folder(OLD) / out.name)
            steps.rename_new(swap, out)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise OutputError(
                f"{out} cannot be replaced in one step: it is a mount point, or in use ({error.strerror}). It is as "
                "it was. Empty it first, or choose another place."
            ) from error
        raise


def _keep(path: Path, twin: Path) -> None:
    """Give a stranger a second name."""
    if path.is_dir() and not path.is_symlink():
        steps.make_folder(twin)
        for inner in sorted(path.iterdir()):
            _keep(inner, twin / inner.name)
        shutil.copystat(path, twin)
    elif not steps.link(path, twin):
        raise OutputError(
            f"{path} was not written by gptexport, and cannot be kept on this filesystem while its folder is replaced. "
            "Move it away, or choose another place."
        )


def settle_bundle(stage: Stage) -> None:
    """Put an old bundle back that has no successor, and delete what has one; strangers' things stay or are moved."""
    for old in stage.found(OLD):
        if not os.path.lexists(stage.home / old.name):
            steps.rename_new(old, stage.home / old.name)
    for left in (*stage.found(SWAP), *stage.found(OLD)):
        _discard(left, stage.home / left.name, _names_in(left))


def _discard(folder: Path, beside: Path, own: frozenset[str]) -> None:
    """Delete what gptexport wrote, and what has a second name in the folder `beside`; move the rest there."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == GENAI_FILE, path.name)):  # it names others
        twin = beside / path.name
        if _is_own(path, own) or is_same(path, twin):
            steps.remove(path)
        elif path.is_dir() and not path.is_symlink() and twin.is_dir():
            _discard(path, twin, frozenset())
        elif not is_stage(path) and not os.path.lexists(twin) and beside.is_dir():
            steps.rename_new(path, twin)
    steps.remove_folder(folder)  # or something of a stranger's has no place beside, or a process works in there
