"""A right export passes, and each wrong one fails, through the command line as users run it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from tests.support.builders import SIZES, random_weights, tiny_nanogpt
from tests.support.cli import Cli
from tests.support.faults import (
    Fault,
    edit_weight,
    other_mask,
    scale_weight,
    set_attribute,
    swap_blocks,
    tampered,
    through,
)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """The right export, to write a verdict into."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_a_right_export_passes(cli: Cli, copy: Path, checkpoint: Path) -> None:
    ran = cli("parity", copy, "--against", checkpoint, "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["passed"] and result["reasons"] == []
    assert 0 < result["noise_ratio"] < 2
    assert [row["shape"] for row in result["shapes"]] == [[1, 1], [1, 2], [8, 5], [3, 17], [2, 9], [1, 17]]
    assert all(row["passed"] and row["flips_outside_ties"] == 0 for row in result["shapes"])
    names = {"batch invariance", "causality", "padding invariance", "rows of wte", "rows of wpe", "other weights"}
    names |= {"last against logits", "score against logits", "decode against logits"}
    assert {row["name"] for row in result["invariances"]} == names
    assert all(row["passed"] for row in result["invariances"])


def test_a_perturbation_inside_the_noise_passes(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """One ulp in one weight is rounding, not a fault: the gates are not so tight that they catch everything."""
    made = tampered(bundle, tmp_path / "b", edit_weight("h.1.mlp.c_fc.weight", _one_ulp))
    assert cli("parity", made, "--against", checkpoint).code == 0


def _one_ulp(weight: np.ndarray) -> np.ndarray:
    made = weight.copy()
    made[0, 0] = np.nextafter(made[0, 0], np.float32(9))
    return made


FAULTS = {
    "one weight matrix by 1e-3": scale_weight("h.1.mlp.c_fc.weight", 1.001),
    "one element of a bias": edit_weight("h.2.attn.c_attn.bias", lambda b: b + 1e-3 * (np.arange(len(b)) == 7)),
    "mask sees the next token": other_mask(None, +1),
    "mask sees the next token, in the last block": other_mask(2, +1),
    "mask hides the token itself": other_mask(None, -1),
    "mask hides the token itself, in the first block": other_mask(0, -1),
    "no mask": other_mask(None, None),
    "layers swapped": swap_blocks(0, 2),
    "one wrong GELU": set_attribute("Gelu", 1, approximate="tanh"),
    "epsilon of one layer norm": set_attribute("LayerNormalization", 0, epsilon=1e-6),
    "float16 after one attention": through(onnx.TensorProto.FLOAT16, "Attention", 1),
    "NaN weights": scale_weight("h.1.ln_2.weight", np.nan),
    "Inf weights": scale_weight("ln_f.weight", np.inf),
    "positions off by one": edit_weight("wpe.weight", lambda w: np.roll(w, 1, axis=0)),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_graph_fails(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path, fault: Fault) -> None:
    made = tampered(bundle, tmp_path / "b", fault)
    ran = cli("parity", made, "--against", checkpoint, "--json")
    assert ran.code == 3, ran.out
    result = json.loads(ran.out)
    assert result["passed"] is False
    assert result["reasons"]


def test_the_wrong_gelu_fails(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    """As it happens in life: the export was told tanh. Top-1 and atol=1e-2 see nothing of it."""
    export_onnx(load_checkpoint(str(checkpoint), gelu="tanh"), tmp_path / "b")
    ran = cli("parity", tmp_path / "b", "--against", checkpoint)
    assert ran.code == 3
    assert "FAIL  not the same model" in ran.out
    assert "exported with GELU tanh; this checkpoint's is taken to be erf" in ran.out
    agreed = cli("parity", tmp_path / "b", "--against", checkpoint, "--gelu", "tanh")
    assert agreed.code == 0, agreed.out


def test_another_checkpoint_of_the_same_shape_fails(cli: Cli, copy: Path, tmp_path: Path) -> None:
    other = tiny_nanogpt(tmp_path / "other.pt", seed=1)
    ran = cli("parity", copy, "--against", other)
    assert ran.code == 3
    assert "argmax flips that are not near-ties" in ran.out


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 101), ("block_size", 24)])
def test_a_checkpoint_of_other_limits_fails(cli: Cli, copy: Path, tmp_path: Path, name: str, value: int) -> None:
    sizes: dict[str, Any] = {name: value}
    other = tiny_nanogpt(tmp_path / "other.pt", **sizes)
    ran = cli("parity", copy, "--against", other, "--json")
    assert ran.code == 3
    result = json.loads(ran.out)
    assert result["reasons"] == [
        f"the artifact's {name} is {SIZES[name]}, the checkpoint's {value}: this is not its export"
    ]
    assert result["shapes"] == [] and result["noise_ratio"] is None


def test_a_checkpoint_with_nan_is_said_to_be_at_fault(cli: Cli, copy: Path, tmp_path: Path) -> None:
    weights = random_weights()
    weights["transformer.h.0.ln_1.weight"][3] = float("nan")
    broken = tiny_nanogpt(tmp_path / "broken.pt", weights=weights)
    ran = cli("parity", copy, "--against", broken)
    assert ran.code == 3
    assert "the eager model itself gives NaN or Inf" in ran.out


def test_a_shrunk_export_is_compared_with_the_shrunk_checkpoint(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    shrunk = tmp_path / "b"
    export_onnx(load_checkpoint(str(checkpoint), vocab_size=90, block_size=13), shrunk)
    ran = cli("parity", shrunk, "--against", checkpoint, "--json")
    assert ran.code == 0, ran.out
    assert max(T for _, T in (row["shape"] for row in json.loads(ran.out)["shapes"])) == 13
    # a lone graph has no manifest to remember the options: they are asked for, and their lack is a mismatch
    alone = tampered(shrunk, tmp_path / "inline") / "logits.onnx"
    assert cli("parity", alone, "--against", checkpoint).code == 3
    options = ("--vocab-size", 90, "--block-size", 13)
    assert cli("parity", alone, "--against", checkpoint, *options).code == 0


@pytest.mark.parametrize(("kind", "factor"), [("last", 1.001), ("score", 1.001), ("decode", 1.001)])
def test_another_graph_of_the_bundle_that_is_wrong_fails(
    cli: Cli, copy: Path, checkpoint: Path, kind: str, factor: float
) -> None:
    """The verdict vouches for every graph of the bundle, so every graph is compared."""
    file = copy / f"{kind}.onnx"
    model = onnx.load(str(file), load_external_data=False)
    output = model.graph.output[0]
    (node,) = (n for n in model.graph.node if output.name in n.output)
    node.output[0] = "raw"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["raw", "factor"], [output.name]))
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((copy / "gptexport.json").read_text())
    manifest["graphs"][kind] |= {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    (copy / "gptexport.json").write_text(json.dumps(manifest))
    ran = cli("parity", copy, "--against", checkpoint, "--json", "--shapes", "3x8")
    assert ran.code == 3
    assert [reason.split(":")[0] for reason in json.loads(ran.out)["reasons"]] == [f"{kind} against logits"]
