"""No reader waits for a FIFO, reads a device, or takes more memory than a file of its kind needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptexport_runtime import ArtifactError, InputError
from gptexport_runtime.files import as_path, is_file, is_folder, open_regular, read_small, read_text, status


def test_a_regular_file_is_read_links_to_it_included(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert is_file(tmp_path / name)
        assert read_small(tmp_path / name, 3) == b"abc"


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcd")
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_small(tmp_path / "file", 3)
    with pytest.raises(ArtifactError, match="more than 3 bytes"):
        read_text(tmp_path / "file", 3)


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "/dev/zero", "folder"])
def test_nothing_but_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "/dev/zero":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to("fifo")
    assert not is_file(path)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_text(path, 100)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", "loop"])
def test_names_that_no_file_has_are_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    assert status(path) is None and not is_file(path) and not is_folder(path)
    with pytest.raises(OSError):
        open_regular(path)


def test_what_is_no_utf8_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff")
    with pytest.raises(ArtifactError, match=r"not UTF-8 .* at byte 3"):
        read_text(tmp_path / "file", 100)


@pytest.mark.parametrize("value", [None, 5, b"bytes", ["a"], object()])
def test_a_path_is_a_string_or_a_path(value: object) -> None:
    with pytest.raises(InputError, match=r"path is .*; expected a string"):
        as_path(value)
    assert as_path("a/b") == Path("a/b") == as_path(Path("a/b"))


def test_as_much_memory_is_taken_as_the_file_has(tmp_path: Path) -> None:
    """And not what somebody says that it has: a sidecar, of its engine."""
    (tmp_path / "small").write_bytes(b"abc")
    assert read_small(tmp_path / "small", 1 << 62) == b"abc"
