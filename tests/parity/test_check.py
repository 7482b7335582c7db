"""Measurements of sessions that are wrong in ways that no edit of a graph makes easily, and the check as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.parity import Verdict, judge, measure_parity
from gptexport.parity.measure.tokens import TokenSource
from gptexport_runtime import GPTExportError, Session
from gptexport_runtime.contract.model import ModelInfo

SHAPES = [(1, 1), (3, 8)]


class EagerSession:
    """A session that runs the eager model, and may then do something to its logits."""

    device = "cpu"

    def __init__(self, checkpoint: Checkpoint, fault: Any = None) -> None:
        self.config = ModelInfo(vocab_size=checkpoint.vocab_size, block_size=checkpoint.block_size)
        self.model = checkpoint.model
        self.fault = fault or (lambda _ids, logits: logits)

    def logits(self, ids: Any) -> np.ndarray:
        lengths = [len(row) for row in ids]
        padded = np.zeros((len(ids), max(lengths)), np.int64)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = values
        with torch.no_grad():
            logits = self.model(torch.from_numpy(padded)).numpy()
        return self.fault(padded, logits)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(checkpoint))


def eager_session(checkpoint: Checkpoint, fault: Any = None) -> Session:
    return cast(Session, EagerSession(checkpoint, fault))


def check(session: Session, checkpoint: Checkpoint, progress: Any = lambda _step: None) -> Verdict:
    return judge(measure_parity(session, checkpoint, SHAPES, progress=progress))


def failing(loaded: Checkpoint, fault: Any) -> list[str]:
    verdict = check(eager_session(loaded, fault), loaded)
    assert bool(verdict) == (not verdict.reasons)
    return [row.name for row in verdict.invariances if not row.passed]


def test_eager_itself_passes(loaded: Checkpoint) -> None:
    verdict = check(eager_session(loaded), loaded)
    assert verdict, verdict.reasons
    assert verdict.noise_ratio == 1.0


def test_a_later_token_that_leaks_is_seen(loaded: Checkpoint) -> None:
    """By 1e-3, and only where the last id is odd: the comparison of a grid may miss it, causality does not."""

    def leak(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:, 0] += 1e-3 * (ids[:, -1] % 2)[:, None] * (ids.shape[1] > 1)
        return logits

    assert "causality" in failing(loaded, leak)


def test_a_neighbour_that_leaks_is_seen(loaded: Checkpoint) -> None:
    def leak(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return logits + np.float32(1e-3) * (len(ids) > 1) * logits.mean(axis=0, keepdims=True)

    assert "batch invariance" in failing(loaded, leak)


def test_padding_that_leaks_is_seen(loaded: Checkpoint) -> None:
    def leak(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        padded = (ids == 0).sum(axis=1) > 2
        logits[padded] *= np.float32(1.001)
        return logits

    assert failing(loaded, leak) == ["padding invariance"]


def test_nan_only_in_some_draw_fails(loaded: Checkpoint) -> None:
    def fault(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[ids == ids.max()] = np.nan
        return logits

    verdict = check(eager_session(loaded, fault), loaded)
    assert not verdict and any("NaN or Inf" in reason for reason in verdict.reasons)


def test_a_model_that_cannot_run_in_float64_is_told(loaded: Checkpoint) -> None:
    class Stubborn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(97, 97))

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(idx, 97).float() @ self.weight

    from dataclasses import replace

    mine = replace(loaded, model=Stubborn().requires_grad_(False))
    with pytest.raises(GPTExportError, match="take their dtype from the parameters"):
        check(eager_session(mine), mine)


def test_the_checkpoint_is_left_as_it_was(loaded: Checkpoint) -> None:
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    check(eager_session(loaded), loaded)
    for name, weight in loaded.model.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, before[name])


class TestLuck:
    """A shape that misses a ratio by little is measured again, on other ids and against several eager runs."""

    def measured(self, loaded: Checkpoint, fault: Any) -> tuple[Any, list[str]]:
        told: list[str] = []
        return check(eager_session(loaded, fault), loaded, told.append), told

    def test_a_fault_stays(self, loaded: Checkpoint) -> None:
        draw = np.random.default_rng(0)

        def noisy(_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            return logits + np.float32(1.5e-6) * draw.normal(size=logits.shape).astype(np.float32)

        verdict, told = self.measured(loaded, noisy)
        assert not verdict and 2 < verdict.noise_ratio < 10
        assert any("once more" in text for text in told)

    def test_bad_luck_does_not(self, loaded: Checkpoint) -> None:
        """Wrong on the first ids alone, as a model is that amplifies rounding at few places."""
        first = TokenSource(loaded.vocab_size).batch((3, 8), 0)

        def unlucky(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            return logits * np.float32(1 + 3e-6 * np.array_equal(ids, first))

        verdict, told = self.measured(loaded, unlucky)
        assert any("once more at B,T = 3,8" in text for text in told)
        assert verdict, verdict.reasons

    def test_what_no_luck_explains_is_not_measured_again(self, loaded: Checkpoint) -> None:
        for factor in (1.00001, 1.001):  # beyond tenfold by the ratio alone, and by other gates too
            verdict, told = self.measured(loaded, lambda _ids, logits, factor=factor: logits * np.float32(factor))
            assert not verdict and not any("once more" in text for text in told)
