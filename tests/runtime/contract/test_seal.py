"""A graph and its weights say that they are of one export."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptexport_runtime.contract.names import META_WEIGHTS
from gptexport_runtime.contract.seal import is_of_another_export, seal, seal_of

ONE, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize("body", [b"", b"x", b"weights" * 1000, seal(OTHER)])
def test_the_last_line_is_read_back(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "w").write_bytes(body + seal(ONE))
    assert seal_of(tmp_path / "w") == ONE


@pytest.mark.parametrize("body", [b"", b"x" * 50, b"weights" * 1000, seal(ONE)[:-1], seal(ONE) + b"\n", seal("A" * 64)])
def test_what_has_no_such_line_says_nothing(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "w").write_bytes(body)
    assert seal_of(tmp_path / "w") is None
    assert seal_of(tmp_path / "gone") is None


def test_only_two_that_differ_are_of_two_exports(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights" + seal(ONE))
    (tmp_path / "old").write_bytes(b"weights")
    assert is_of_another_export(tmp_path / "w", {META_WEIGHTS: OTHER})
    assert not is_of_another_export(tmp_path / "w", {META_WEIGHTS: ONE})
    assert not is_of_another_export(tmp_path / "w", {})
    assert not is_of_another_export(tmp_path / "old", {META_WEIGHTS: OTHER})
