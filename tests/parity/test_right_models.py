"""Right exports of random Llama- and nanochat-shaped models pass. A hundred: `python -m scripts.bench.parity right`."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.parity import run_right


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 12))])
def test_no_right_model_is_called_wrong(number: int, tmp_path: Path) -> None:
    """Even numbers are Llamas, odd ones nanochats."""
    (found,) = run_right(tmp_path, range(number, number + 1), ("llama", "nanochat"))
    assert found.passed and found.steps_passed, (found.sizes, found.reasons)
    assert found.steps > 0 and found.ratio <= 2
