"""Small shapes that come again are captured, up to a number, each thread's by itself."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gptexport_runtime.backends.gpu import captured
from gptexport_runtime.backends.gpu.captured import CapturedShapes


def find(shapes: CapturedShapes, key: int, tokens: int = 1) -> Any:
    def capture(number: Any) -> Any:
        return number

    return shapes.find((key,), tokens, capture)


def test_a_shape_is_captured_when_it_comes_again() -> None:
    shapes = CapturedShapes()
    assert [find(shapes, 1) for _ in range(3)] == [None, 1, 1]
    assert [find(shapes, 2) for _ in range(3)] == [None, 2, 2]
    assert find(shapes, 1) == 1 and shapes.made == 2


def test_large_shapes_are_not() -> None:
    shapes = CapturedShapes()
    assert [find(shapes, 1, captured.CAPTURED_TOKENS + 1) for _ in range(3)] == [None] * 3
    assert [find(shapes, 2, captured.CAPTURED_TOKENS) for _ in range(2)] == [None, 1]
    shapes = CapturedShapes(512)
    assert [find(shapes, 1, 512) for _ in range(2)] == [None, 1] and find(shapes, 3, 513) is None


def test_there_are_no_more_than_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "MOST_GRAPHS", 2)
    shapes = CapturedShapes()
    assert [[find(shapes, key) for _ in range(3)] for key in range(3)] == [[None, 1, 1], [None, 2, 2], [None] * 3]
    assert find(shapes, 0) == 1, "none is replaced"


def test_shapes_that_came_once_are_forgotten_at_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "REMEMBERED", 3)
    shapes = CapturedShapes()
    for key in range(4):
        assert find(shapes, key) is None
    assert find(shapes, 0) is None and find(shapes, 3) == 1


def test_threads_have_graphs_of_their_own() -> None:
    """ONNX Runtime keeps them by thread: in another it would capture again, over the same memory."""
    shapes, found = CapturedShapes(), []
    assert [find(shapes, 1), find(shapes, 1)] == [None, 1]
    thread = threading.Thread(target=lambda: found.extend([find(shapes, 1), find(shapes, 1)]))
    thread.start()
    thread.join()
    assert found == [None, 2]
