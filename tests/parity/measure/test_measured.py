"""Measurements are saved, and judged again with other gates and without the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptexport.cli.app import run
from gptexport.parity.measure.measured import is_measured, load_measured
from gptexport.parity.verdict.gates import changed_gates
from gptexport.parity.verdict.judge import judge
from gptexport.precision import FLOAT32, Gates
from gptexport_runtime import GPTExportError, InputError
from tests.support.cli import Cli
from tests.support.fault_catalogue import scaled_logits
from tests.support.faults import other_mask, scale_weight, tampered

SHAPES = ("--shapes", "1x3,2x17")


@pytest.fixture(scope="module")
def saved(bundle: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a graph that is wrong, by about 25 times the noise."""
    folder = tmp_path_factory.mktemp("saved")
    made = tampered(bundle, folder / "b", scaled_logits(1.00001))
    path = folder / "parity.json"
    assert run(["parity", str(made), "--against", str(checkpoint), "--save", str(path), "-q", *SHAPES]) == 3
    return path


def test_the_same_gates_give_the_same_verdict(cli: Cli, saved: Path) -> None:
    ran = cli("parity", saved, "--json")
    assert ran.code == 3
    result = json.loads(ran.out)
    assert not result["passed"] and result["noise_ratio"] > 2
    assert result["summary"]["positions"] == 11 * 3 + 34
    measured = load_measured(saved)
    assert judge(measured).to_dict() == judge(load_measured(saved)).to_dict()


def test_flips_and_what_must_not_change_are_kept(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = tampered(bundle, tmp_path / "b", other_mask(None, None), scale_weight("h.1.mlp.c_fc.weight", 3))
    first = cli("parity", made, "--against", checkpoint, "--save", tmp_path / "p.json", "--json", *SHAPES)
    again = cli("parity", tmp_path / "p.json", "--json")
    before, after = json.loads(first.out), json.loads(again.out)
    assert any("argmax flips" in reason for reason in before["reasons"])
    assert any("causality" in reason for reason in before["reasons"])
    for name in ("reasons", "shapes", "invariances", "summary"):
        assert before[name] == after[name]


def test_other_gates_give_another(cli: Cli, saved: Path) -> None:
    assert cli("parity", saved, "--gate", "noise_ratio=99", "--gate", "max_ratio=none").code == 0
    assert cli("parity", saved, "--gate", "noise_ratio=99", "--gate", "kl_mean=0").code == 3


def test_without_the_ratios_float32_is_still_float32(cli: Cli, saved: Path) -> None:
    """Not a quantized model, whose statistics decide."""
    ran = cli("parity", saved, "--gate", "noise_ratio=none", "--gate", "max_ratio=none", "--gate", "kl_mean=none")
    assert "quantized" not in ran.out


@pytest.mark.parametrize(
    "gate", ["noise_ratio", "noise=3", "noise_ratio=much", "=3", "kl_mean=nan", "kl_mean=-1", "statistical=1"]
)
def test_a_gate_that_is_none_is_a_usage_error(cli: Cli, saved: Path, gate: str) -> None:
    ran = cli("parity", saved, "--gate", gate)
    assert ran.code == 2 and "gate" in ran.err.lower()


def test_changed_gates() -> None:
    changed = changed_gates(FLOAT32.gates, {"noise_ratio": "3", "max_ratio": "none"})
    assert (changed.noise_ratio, changed.max_ratio) == (3.0, None)
    assert changed.kl_mean == FLOAT32.gates.kl_mean
    assert changed_gates(Gates(), {}) == Gates()
    with pytest.raises(InputError, match="expected one of noise_ratio, max_ratio"):
        changed_gates(Gates(), {"typo": "3"})


@pytest.mark.parametrize("text", ["", "{}", '{"format": "gptexport-parity"', '{"format": "gptexport-parity"}'])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "parity.json"
    path.write_text(text)
    with pytest.raises(GPTExportError, match="does not hold saved measurements"):
        load_measured(path)


@pytest.mark.parametrize(("name", "value"), [("gates", "int7"), ("dtype", "float99")])
def test_a_precision_nobody_knows(cli: Cli, saved: Path, tmp_path: Path, name: str, value: str) -> None:
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({**json.loads(saved.read_text()), name: value}))
    ran = cli("parity", changed)
    assert ran.code == 1 and f"{name} '{value}' is not known" in ran.err and "bug" not in ran.err


def test_what_is_no_text_is_one_clear_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\xfd\xff" * 99)
    ran = cli("parity", tmp_path / "p.json")
    assert ran.code == 2 and "--against" in ran.err, "it is not taken for measurements"


def _no_stats(data: dict[str, Any]) -> None:
    data["stats"] = []


def _an_id_past_int64(data: dict[str, Any]) -> None:
    data["stats"][0]["each"]["expected_top"][0] = 1e308


@pytest.mark.parametrize("change", [_no_stats, _an_id_past_int64])
def test_numbers_that_no_run_gives(
    cli: Cli, saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    data = json.loads(saved.read_text())
    change(data)
    (tmp_path / "changed.json").write_text(json.dumps(data))
    ran = cli("parity", tmp_path / "changed.json")
    assert ran.code == 1 and "does not hold saved measurements" in ran.err and "bug" not in ran.err


def test_a_batch_that_is_only_said_costs_nothing(cli: Cli, saved: Path, tmp_path: Path) -> None:
    data = json.loads(saved.read_text())
    data["stats"][0]["shape"] = [2**62, 1]
    (tmp_path / "changed.json").write_text(json.dumps(data))
    assert cli("parity", tmp_path / "changed.json").code == 3


def test_columns_of_unequal_length(cli: Cli, saved: Path, tmp_path: Path) -> None:
    data = json.loads(saved.read_text())
    data["stats"][0]["each"]["kl"].pop()
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(data))
    ran = cli("parity", changed)
    assert ran.code == 1 and "does not hold saved measurements" in ran.err and "bug" not in ran.err


def test_a_manifest_is_not_taken_for_measurements(bundle: Path, saved: Path) -> None:
    assert is_measured(saved)
    assert not is_measured(bundle / "gptexport.json") and not is_measured(bundle)


def test_nan_survives(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = tampered(bundle, tmp_path / "b", scale_weight("ln_f.weight", np.nan))
    path = tmp_path / "parity.json"
    assert cli("parity", made, "--against", checkpoint, "--save", path, *SHAPES).code == 3
    assert cli("parity", path).code == 3
    assert judge(load_measured(path)).reasons == ("NaN or Inf in the logits (at 1x3, and 1 more shape)",)
