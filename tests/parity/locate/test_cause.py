"""The cause: the first stage on the way from the checkpoint that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.artifacts import Stage, describe_artifact
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.parity.locate import cause
from gptexport.parity.locate.intermediate import run_graph
from gptexport_runtime import Session, load
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.fault_catalogue import at
from tests.support.faults import edit_weight, scale_weight, set_attribute, tampered

IDS = np.random.default_rng(0).integers(0, 97, (3, 17))


def cause_of(session: Session, checkpoint: Checkpoint, bundle: Path) -> cause.Attribution:
    artifact = describe_artifact(bundle)
    with cause.fresh_exports(checkpoint, artifact.precision) as fresh:
        return cause.find_cause(session, checkpoint, artifact, IDS, fresh)


def test_a_changed_graph(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = tampered(bundle, tmp_path / "b", set_attribute("Gelu", None, approximate="tanh"))
    result = json.loads(cli("parity", made, "--against", checkpoint, "--json").out)
    assert result["divergence"]["sentence"].startswith("h.0.mlp.gelu (Gelu): error ×")
    assert result["divergence"]["claim"] == "GELU tanh for erf"
    assert result["divergence"]["also"] == ["h.1.mlp.gelu", "h.2.mlp.gelu"]
    blame = result["blame"]
    assert [stage["right"] for stage in blame["stages"]] == [True, True, False, False]
    assert (blame["cause"], blame["culprit"]) == ("graph", "this graph, as it is written")
    assert "what was done to the graph after the portable export" in blame["sentence"]


def test_the_text_says_where_and_who(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = tampered(bundle, tmp_path / "b", scale_weight("h.1.mlp.c_fc.bias", 0))
    ran = cli("parity", made, "--against", checkpoint)
    assert ran.code == 3
    assert "WHERE  h.1.mlp.c_fc (Add, MatMul): error ×" in ran.out and "looks like bias missing" in ran.out
    assert "CAUSE  what was done to the graph" in ran.out


def test_quick_says_where_but_not_who(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = tampered(bundle, tmp_path / "b", scale_weight("h.1.mlp.c_fc.bias", 0))
    ran = cli("parity", made, "--against", checkpoint, "--quick")
    assert ran.code == 3
    assert "WHERE  h.1.mlp.c_fc" in ran.out and "CAUSE" not in ran.out
    assert json.loads((made / "gptexport.json").read_text())["parity"] is None, "a quick answer is no certificate"


def test_another_checkpoint(bundle: Path, tmp_path: Path) -> None:
    other = load_checkpoint(str(tiny_nanogpt(tmp_path / "other.pt", seed=1)))
    with load(bundle) as session:
        found = cause_of(session, other, bundle)
    assert found.cause is Stage.GRAPH
    assert "exported from another file than this checkpoint" in found.sentence


def test_a_factory_that_is_not_seeded(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "import torch.nn as nn\n"
        "class Mine(nn.Sequential):\n"
        "    block_size = 16\n"
        "def make():\n"
        "    return Mine(nn.Embedding(11, 8), nn.Linear(8, 11))\n"
    )
    assert cli("onnx", f"{source}:make", "-o", tmp_path / "b", "-q").code == 0
    ran = cli("parity", tmp_path / "b", "--against", f"{source}:make")
    assert ran.code == 3 and "from other weights than the factory gives now: it gives others at every call" in ran.out


class _Session:
    """A session whose backend does something to right logits."""

    device = "cpu"

    def __init__(self, session: Any, factor: float) -> None:
        self.factor, self._session = factor, session

    def logits(self, ids: Any) -> Any:
        return self._session.logits(ids) * np.float32(self.factor)


def test_the_backend(bundle: Path, checkpoint: Path) -> None:
    with load(bundle) as session:
        mine = load_checkpoint(str(checkpoint))
        wrong: Any = _Session(session, 1.01)
        found = cause_of(wrong, mine, bundle)
        assert [result.right for result in found.stages] == [True, True, True, False]
        assert found.cause is Stage.ONNX_RUNTIME and found.sentence.startswith("the backend")
        right: Any = _Session(session, 1.0)
        assert cause_of(right, mine, bundle).cause is None


def test_the_export(bundle: Path, checkpoint: Path, monkeypatch: Any) -> None:
    def wrong(path: Path, *arguments: Any, **options: Any) -> Any:
        return run_graph(path, *arguments, **options) * np.float32(path.parent == bundle)

    monkeypatch.setattr(cause, "run_graph", wrong)
    with load(bundle) as session:
        mine = load_checkpoint(str(checkpoint))
        assert cause_of(session, mine, bundle).cause is Stage.EXPORT


def test_a_stage_that_cannot_run_says_so_and_is_not_the_cause(bundle: Path, checkpoint: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no room\nand more")

    monkeypatch.setattr(cause, "fresh_export", fail)
    with load(bundle) as session:
        stages = cause_of(session, load_checkpoint(str(checkpoint)), bundle).stages
    assert (stages[1].right, stages[1].why) == (None, "no room")


def test_a_pass_with_one_wrong_step_says_so(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A fault below the gates of the logits is far above the noise of its own step."""
    made = tampered(bundle, tmp_path / "b", set_attribute("Attention", 2, scale=10**-0.5 * (1 + 4e-6)))
    ran = cli("parity", made, "--against", checkpoint)
    assert ran.code == 0, ran.out
    assert "NOTE   within the gates, though one step alone is not: h.2.attn before c_proj" in ran.out


def test_a_weight_that_the_logits_do_not_show(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """It is in the graph, whatever the logits say: the graph is the cause, and the bias is named."""
    made = tampered(bundle, tmp_path / "b", edit_weight("h.2.attn.c_attn.bias", at(7, 2e-5)))
    ran = cli("parity", made, "--against", checkpoint)
    assert ran.code == 3
    assert "other weights (h.2.attn.c_attn.bias): what must not change did" in ran.out
    assert "CAUSE  this graph, as it is written: it holds other weights than the checkpoint, by less" in ran.out
