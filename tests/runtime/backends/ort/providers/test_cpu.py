"""The CPU takes the cores that this process may use."""

from __future__ import annotations

import os

import pytest

from gptexport_runtime.backends.ort.providers.cpu import CPU


def test_usable_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert CPU.threads() == 3
