"""Word of how far long work is."""

from __future__ import annotations

import time

import pytest

from gptexport import progress


def test_what_happens_often_is_said_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = iter([0.0, 5.0, 11.0, 11.0, 20.0, 21.5, 21.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    say = progress.seldom(said.append)
    for step in ("at 5 s", "at 11 s", "at 20 s", "at 21.5 s"):
        say(step)
    assert said == ["at 11 s", "at 21.5 s"]
