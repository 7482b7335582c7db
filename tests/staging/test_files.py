"""One file in place of another: manifests, sidecars, reports, saved measurements."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from gptexport.errors import OutputError, OutputExistsError
from gptexport.staging import check_output_file, replace_file, replacing, update_file, watched, write_output
from tests.support.outputs import listing


def test_the_old_one_stays_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gptexport.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left on device"):
        replace_file(path, b"new")
    assert listing(tmp_path) == ["gptexport.json"]
    assert path.read_text() == "old"


def test_a_file_that_another_writes_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    for content in ("one", "two"):
        with replacing(path) as made:
            made.write_text(content)
            assert not path.exists() or path.read_text() == "one"
        assert listing(tmp_path) == [path.name] and path.read_text() == content
    with pytest.raises(ZeroDivisionError), replacing(path) as made:
        made.write_text("half")
        raise ZeroDivisionError
    assert listing(tmp_path) == [path.name] and path.read_text() == "two"


def test_a_link_is_replaced_and_what_it_leads_to_is_not_touched(tmp_path: Path) -> None:
    """A bundle may be anybody's: its files must not say where gptexport writes."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "bashrc").write_text("precious")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("gptexport.json", ".gptexport.json.tmp"):
        (bundle / name).symlink_to("../home/bashrc")
    replace_file(bundle / "gptexport.json", b"new")
    assert (tmp_path / "home" / "bashrc").read_text() == "precious"
    assert not (bundle / "gptexport.json").is_symlink()
    assert (bundle / "gptexport.json").read_text() == "new"


def test_a_fifo_is_replaced_without_waiting_and_never_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gptexport.json")
    with pytest.raises(OutputError, match="not a regular file"):
        update_file(tmp_path / "gptexport.json", lambda old: old)
    replace_file(tmp_path / "gptexport.json", b"new")
    assert (tmp_path / "gptexport.json").read_text() == "new"


def test_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "gptexport.json"
    path.write_text("old")
    path.chmod(0o664)
    replace_file(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_an_update_reaches_no_folder_that_has_taken_the_name(tmp_path: Path) -> None:
    for name in ("gpt", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gptexport.json").write_text(name)

    def swap(old: bytes) -> bytes:
        (tmp_path / "gpt").rename(tmp_path / "away")
        (tmp_path / "other").rename(tmp_path / "gpt")
        return old + b" checked"

    with pytest.raises(OutputError, match="replaced in the meantime"):
        update_file(tmp_path / "gpt" / "gptexport.json", swap)
    assert (tmp_path / "gpt" / "gptexport.json").read_text() == "other"
    assert listing(tmp_path / "gpt") == ["gptexport.json"]


def test_an_update_at_the_last_moment_goes_into_the_folder_it_was_read_from(tmp_path: Path) -> None:
    for name in ("gpt", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gptexport.json").write_text(name)

    def swap(step: str, _path: Path) -> None:
        if step == "replace":
            (tmp_path / "gpt").rename(tmp_path / "away")
            (tmp_path / "other").rename(tmp_path / "gpt")

    with watched(swap):
        update_file(tmp_path / "gpt" / "gptexport.json", lambda old: old + b" checked")
    assert (tmp_path / "gpt" / "gptexport.json").read_text() == "other"
    assert (tmp_path / "away" / "gptexport.json").read_text() == "gpt checked"


def _append(path: Path, mark: str, times: int) -> None:
    for _ in range(times):
        update_file(path, lambda old: old + mark.encode())


def test_processes_that_update_one_file_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "gptexport.json"
    path.write_bytes(b"")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(path, mark, 10)) for mark in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(path.read_text()) == sorted("abc" * 10)
    assert listing(tmp_path) == ["gptexport.json"]


def _is_mine(path: Path) -> bool:
    return path.read_text().startswith("mine")


def test_a_file_that_the_user_named_replaces_only_its_own_kind(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_output(path, b"mine 1", is_ours=_is_mine, what="report")
    write_output(path, b"mine 2", is_ours=_is_mine, what="report")
    assert path.read_text() == "mine 2"
    path.write_text("the user's")
    with pytest.raises(OutputExistsError, match="holds no report to replace"):
        write_output(path, b"mine 3", is_ours=_is_mine, what="report")
    with pytest.raises(OutputExistsError, match="holds no report to replace"):
        check_output_file(path, is_ours=_is_mine, what="report")
    assert path.read_text() == "the user's"


def test_a_link_of_the_users_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest.html").symlink_to("disk/report.html")
    write_output(tmp_path / "latest.html", b"mine", is_ours=_is_mine, what="report")
    assert (tmp_path / "latest.html").is_symlink()
    assert (tmp_path / "disk" / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["pipe", "gone/report.html", "folder"])
def test_where_no_file_can_be_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        check_output_file(tmp_path / name, is_ours=lambda _: True, what="report")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync = os.fsync

    def no_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_disk_that_fails_at_the_end_is_told_and_nothing_is_called_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def broken(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match="all is in place"):
        replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write into"):
        replace_file(tmp_path / "a", b"new")
