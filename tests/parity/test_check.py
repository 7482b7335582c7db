"""Measurements of sessions that are wrong in ways that no edit of a graph makes easily, and the check as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.parity import Verdict, judge, measure_parity
from gptexport.parity.measure.tokens import TokenSource
from gptexport_runtime import Session
from gptexport_runtime.contract.manifest import TextEntry
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
    assert verdict.special is not None
    return [row.name for row in verdict.invariances if not row.passed] + ["special ids"] * (not verdict.special.passed)


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

    assert failing(loaded, leak) == ["padding invariance", "special ids"]


def test_nan_only_in_some_draw_fails(loaded: Checkpoint) -> None:
    def fault(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[ids == ids.max()] = np.nan
        return logits

    verdict = check(eager_session(loaded, fault), loaded)
    assert not verdict and any("NaN or Inf" in reason for reason in verdict.reasons)


class TestTheYardstickIsDoubtful:
    """Where the forward does something else in float64, eager itself is the reference, and the verdict says so."""

    @pytest.fixture
    def mine(self, loaded: Checkpoint) -> Checkpoint:
        class Switch(torch.nn.Module):
            def __init__(self, model: torch.nn.Module) -> None:
                super().__init__()
                self.model = model

            def forward(self, idx: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.model(idx)
                return logits if logits.dtype == torch.float32 else logits * 1.01

        return replace(loaded, model=Switch(loaded.model))

    def test_a_right_artifact_passes(self, mine: Checkpoint) -> None:
        verdict = check(eager_session(mine), mine)
        assert verdict, verdict.reasons
        (note,) = verdict.notes
        assert "the yardstick is doubtful: in float64 the forward gives other logits, 9.9e-03 relative RMS" in note
        assert "compared with eager itself" in note

    def test_a_wrong_one_fails(self, mine: Checkpoint) -> None:
        """By a little, which as near to eager as this float64 is would drown in its difference."""

        def wrong(_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            return logits * np.float32(1 + 1e-5)

        verdict = check(eager_session(mine, wrong), mine)
        assert not verdict and verdict.notes and any("RMS error is" in reason for reason in verdict.reasons)

    def test_a_forward_that_does_not_run_in_float64(self, loaded: Checkpoint) -> None:
        class Stubborn(torch.nn.Module):
            def __init__(self, model: torch.nn.Module) -> None:
                super().__init__()
                self.model = model

            def forward(self, idx: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.model(idx)
                if logits.dtype != torch.float32:
                    raise TypeError("float32, please")
                return logits

        mine = replace(loaded, model=Stubborn(loaded.model))
        verdict = check(eager_session(mine), mine)
        assert verdict and verdict.notes[0].startswith("the yardstick is doubtful: the model does not run in float64")
        assert not check(eager_session(mine, lambda _ids, logits: logits * np.float32(1 + 1e-5)), mine)


class TestSpecialIds:
    """What a forward does with padding and with the ends of documents shows on no random ids."""

    def test_padding_that_becomes_nan_is_seen(self, loaded: Checkpoint) -> None:
        """A row that begins with it, which uniform draws from a real vocabulary never bring."""

        def wrong(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            logits[(ids[:, :2] == 0).all(axis=1)] = np.nan
            return logits

        assert failing(loaded, wrong) == ["special ids"]

    def test_a_known_id_is_one_of_them(self, loaded: Checkpoint) -> None:
        def wrong(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            logits[:, 2:] += np.float32(1e-3) * (ids[:, :2] == 42).all(axis=1)[:, None, None]
            return logits

        assert failing(loaded, wrong) == []
        mine = replace(loaded, text=TextEntry(eos_token_ids=(42,)))
        assert failing(mine, wrong) == ["special ids"]


class TestNotFiniteOnPurpose:
    """A forward may set logits to -Inf, or give NaN for padding: the artifact must do so at the very same places."""

    @pytest.fixture
    def mine(self, loaded: Checkpoint) -> Checkpoint:
        class Forbidding(torch.nn.Module):
            def __init__(self, model: torch.nn.Module) -> None:
                super().__init__()
                self.model = model

            def forward(self, idx: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.model(idx)
                logits = logits.masked_fill(torch.arange(97) == 5, -torch.inf)
                return torch.where((idx == 0)[..., None], torch.nan, logits)

        return replace(loaded, model=Forbidding(loaded.model))

    def test_the_same_places_pass(self, mine: Checkpoint) -> None:
        verdict = check(eager_session(mine), mine)
        assert verdict, verdict.reasons
        assert verdict.summary is not None and np.isfinite(verdict.summary.kl.mean)

    @pytest.mark.parametrize("value", [-1e38, np.nan, np.inf])
    def test_another_number_there_fails(self, mine: Checkpoint, value: float) -> None:
        def wrong(_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            logits[..., 5] = value
            return logits

        verdict = check(eager_session(mine, wrong), mine)
        assert not verdict and any("NaN or Inf" in reason for reason in verdict.reasons)

    def test_an_error_elsewhere_fails(self, mine: Checkpoint) -> None:
        assert not check(eager_session(mine, lambda _ids, logits: logits * np.float32(1.001)), mine)


def test_a_model_that_looks_ahead_is_said_to(loaded: Checkpoint) -> None:
    """It is the model's, not the export's; and a session that pads rows cannot be right with it."""

    class Mean(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(idx)
            return logits + logits.mean(1, keepdim=True)

    mine = replace(loaded, model=Mean(loaded.model))
    verdict = check(eager_session(mine), mine)
    assert not verdict
    (causality,) = (reason for reason in verdict.reasons if reason.startswith("causality"))
    assert "The model's own logits change by" in causality and "it is no causal model" in causality


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
