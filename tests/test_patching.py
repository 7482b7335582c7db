"""A test that patches what nobody reads any more tests nothing, and passes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.patching import ROOT, faults_of, read_when_called

TESTS = Path(__file__).parent


def test_every_patch_in_the_tests_reaches_what_it_is_meant_for() -> None:
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 50
    assert [f"{file.relative_to(ROOT)}, {fault}" for file in files for fault in faults_of(file.read_text())] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("monkeypatch.setattr('gptexport.errors.NOWHERE', 3)", "is patched by a string"),
        (
            "from gptexport import errors\nmonkeypatch.setattr(errors, 'NOWHERE', 3)",
            "no function in gptexport/errors.py reads NOWHERE when it is called",
        ),
    ],
)
def test_a_patch_that_reaches_nothing_is_found(source: str, fault: str) -> None:
    assert fault in "\n".join(faults_of(source))


def test_what_is_not_ours_may_be_patched() -> None:
    assert not list(faults_of("import os\nmonkeypatch.setattr(os, 'EX_OK', 3)"))


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("def f(): return N", True),
        ("def f(size=N): return size", False),
        ("def f():\n def g(size=N): return size\n return g", False),
        ("M = N", False),
        ("class A:\n def f(self): return N", True),
    ],
)
def test_a_default_is_read_before_any_patch(source: str, read: bool) -> None:
    assert read_when_called(ast.parse(source), "N") == read
