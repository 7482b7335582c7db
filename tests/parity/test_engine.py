"""An engine is checked as any artifact, three ways: eager, the graph it was built from, and the engine.

The engine's arithmetic is ONNX Runtime's here, or a wrong copy of it, behind a GPU that there is not.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptexport.artifacts import Engine
from gptexport.artifacts.engine import open_engine
from gptexport.casting import Cast
from gptexport.checkpoints import load_checkpoint
from gptexport.engine import open_source
from gptexport.export import export_onnx
from gptexport_runtime import ArtifactError, InputError, load
from gptexport_runtime.backends.tensorrt import backend as trt
from gptexport_runtime.contract.engine import Profile, TensorInfo, sidecar_path
from gptexport_runtime.engine_file import read_engine_info
from tests.support.cli import Cli
from tests.support.fake_driver import FakeLibrary
from tests.support.fake_engine import Fake, write_engine, write_sidecar
from tests.support.fake_tensorrt import FakeEngine
from tests.support.faults import scale_weight, set_attribute, tampered

SMALL, LARGE = Profile(min=(1, 1), opt=(1, 4), max=(2, 8)), Profile(min=(1, 1), opt=(4, 16), max=(4, 17))
Compute = Callable[[Any], Any]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(bundle, compute)`: an engine "built" from a bundle, which computes what it computes, or `compute` of it."""

    def call(
        bundle: Path,
        compute: Compute = lambda logits: logits,
        *,
        profiles: tuple[Profile, ...] = (SMALL, LARGE),
        compute_in: Path | None = None,
        **described: Any,
    ) -> Path:
        source, session = open_source(bundle), load(compute_in or bundle, device="cpu")
        assert source.manifest is not None
        folder = tmp_path / "engines"
        folder.mkdir(exist_ok=True)
        path, V = write_engine(folder), source.vocab_size
        changes = {
            "onnx": dict(source.hashes),
            "model": dict(source.model),
            "source": dict(source.manifest.source),
            "outputs": (TensorInfo(name="logits", dtype="float32", shape=("B", "T", V)),),
            "options": {},
            "dtype": source.dtype,
            "profiles": profiles,
        }
        write_sidecar(path, **(changes | described))
        cuda = FakeLibrary()
        engine = FakeEngine(
            cuda, [(p.min, p.opt, p.max) for p in profiles], lambda ids: compute(session.logits(ids)), V
        )
        fake = Fake(path, cuda, engine, monkeypatch)
        fake.gpu("8.9")
        fake.library(engine)
        return path

    return call


def beside(bundle: Path, engine: Path) -> Path:
    return Path(shutil.copytree(bundle, engine.parent / "gpt"))


def test_a_right_engine_passes_and_its_sidecar_says_so(cli: Cli, make: Make, bundle: Path, checkpoint: Path) -> None:
    """In its profiles alone, each of them; and the sidecar is what `require_parity` asks for."""
    engine = make(bundle)
    with pytest.raises(ArtifactError, match="its parity was never checked"):
        load(engine, require_parity=True)
    result = json.loads(cli("parity", engine, "--against", checkpoint, "--json").out)
    assert result["passed"] and result["blame"] is None
    shapes = [tuple(row["shape"]) for row in result["shapes"]]
    assert (2, 8) in shapes and (1, 17) in shapes and all(B <= 4 and T <= 17 for B, T in shapes)
    names = {row["name"] for row in result["invariances"]}
    assert names >= {"causality", "batch invariance", "padding invariance"}
    record = read_engine_info(engine).parity
    assert record is not None and record["passed"] and record["engine_sha256"] == read_engine_info(engine).engine.sha256
    load(engine, require_parity=True).close()
    info = json.loads(sidecar_path(engine).read_text())
    info["parity"]["engine_sha256"] = "0" * 64
    sidecar_path(engine).write_text(json.dumps(info))
    with pytest.raises(ArtifactError, match="measured on another engine"):
        load(engine, require_parity=True)


def test_tensorrt_is_the_cause(cli: Cli, make: Make, bundle: Path, checkpoint: Path) -> None:
    engine = make(bundle, lambda logits: logits * np.float32(1.01))
    beside(bundle, engine)
    ran = cli("parity", engine, "--against", checkpoint)
    assert ran.code == 3
    assert "CAUSE  TensorRT: the graph it was given is right, and the engine it built is wrong" in ran.out
    stages = [line.split()[0] for line in ran.out.split("CAUSE")[1].splitlines()[1:] if line.strip()]
    assert stages == ["right", "right", "right", "right", "WRONG"]
    with pytest.raises(ArtifactError, match="its parity check failed"):
        load(engine, require_parity=True)


def test_tf32_is_precision(cli: Cli, make: Make, bundle: Path, checkpoint: Path) -> None:
    engine = make(bundle, lambda logits: logits * np.float32(1.0005), options={"tf32": True})
    ran = cli("parity", engine, "--against", checkpoint, "--graph", bundle)
    assert ran.code == 3 and "CAUSE  the precision of the engine: it was built with --tf32" in ran.out


def test_the_export_is_the_cause_and_the_step_is_named(
    cli: Cli, make: Make, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    wrong = tampered(bundle, tmp_path / "wrong", set_attribute("Gelu", 1, approximate="tanh"))
    engine = make(wrong)
    beside(wrong, engine)
    ran = cli("parity", engine, "--against", checkpoint)
    assert ran.code == 3
    assert "WHERE  h.1.mlp.gelu (Gelu): error ×" in ran.out and "looks like GELU tanh for erf" in ran.out
    assert "CAUSE  what was done to the graph after the portable export" in ran.out
    assert "WRONG   the engine's graph, as it is written" in ran.out


def test_our_own_rewriting_is_the_cause(
    cli: Cli, make: Make, bundle: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptexport.engine.prepare import prepare_graph
    from gptexport.parity.locate import cause

    right = prepare_graph

    def wrong(model: Any) -> Any:
        made, prepared = right(model)
        set_attribute("Gelu", 0, approximate="tanh")(made)
        return made, prepared

    monkeypatch.setattr(cause, "prepare_graph", wrong)
    engine = make(bundle, lambda logits: logits * np.float32(1.01))
    ran = cli("parity", engine, "--against", checkpoint, "--graph", bundle)
    assert ran.code == 3 and "CAUSE  `gptexport trt`: it rewrote a right graph" in ran.out


def test_without_its_graph_the_cause_stays_open(cli: Cli, make: Make, bundle: Path, checkpoint: Path) -> None:
    engine = make(bundle, lambda logits: logits * np.float32(1.01))
    ran = cli("parity", engine, "--against", checkpoint)
    assert ran.code == 3
    assert "CAUSE  TensorRT, or a step before it that could not be run here" in ran.out
    assert "not found beside the engine; say where it is with --graph" in ran.out


def test_another_checkpoint_is_told_by_its_hash(cli: Cli, make: Make, bundle: Path, tmp_path: Path) -> None:
    from tests.support.builders import tiny_nanogpt

    engine = make(bundle)
    ran = cli("parity", engine, "--against", tiny_nanogpt(tmp_path / "other.pt", seed=1), "--graph", bundle)
    assert ran.code == 3 and "CAUSE  the engine's graph was exported from another file than this checkpoint" in ran.out


@pytest.mark.slow
def test_bfloat16_goes_through_float32_here(
    cli: Cli, make: Make, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """ONNX Runtime's CPU has no bfloat16: the graph is judged by its function. The yardstick stays eager bfloat16."""
    made = export_onnx(load_checkpoint(str(checkpoint)), tmp_path / "bf16", dtype="bfloat16").path
    engine = make(made, compute_in=bundle)  # the fake engine computes in float32, which is right enough
    beside(made, engine)
    assert cli("parity", engine, "--against", checkpoint).code == 0
    engine = make(made, lambda logits: logits * np.float32(1.3), compute_in=bundle)
    ran = cli("parity", engine, "--against", checkpoint)
    assert ran.code == 3 and "CAUSE  TensorRT: the graph it was given is right" in ran.out
    assert "right   the engine's graph, as it is written, in float32" in ran.out


def test_a_wrong_step_of_a_bfloat16_graph_is_named(
    cli: Cli, make: Make, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The graph as it is written is the cause, run in float32 or not; and its wrong step is looked for."""
    right = export_onnx(load_checkpoint(str(checkpoint)), tmp_path / "bf16", dtype="bfloat16").path
    wrong = tampered(right, tmp_path / "wrong", scale_weight("h.1.mlp.c_fc.weight", 1.5))
    engine = make(wrong, lambda logits: logits * np.float32(1.3), compute_in=bundle)
    ran = cli("parity", engine, "--against", checkpoint, "--graph", wrong)
    assert ran.code == 3
    assert "WRONG   the engine's graph, as it is written, in float32" in ran.out
    assert "CAUSE  what was done to the graph after the portable export" in ran.out
    assert "WHERE  h.1.mlp.c_fc (" in ran.out
    assert re.search(r"looks like weights multiplied by 1\.(5|49)", ran.out)


def test_the_precision_is_the_cause(cli: Cli, make: Make, bundle: Path, checkpoint: Path, monkeypatch: Any) -> None:
    """Eager itself is too far off to be a yardstick."""
    from gptexport.parity import check
    from gptexport.parity.locate import cause

    def rough(model: Any, precision: Any) -> Any:
        import torch

        with torch.no_grad():
            made = __import__("copy").deepcopy(model)
            for parameter in made.parameters():
                parameter.mul_(1 + 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        return Cast(made, precision.torch_dtype)

    monkeypatch.setattr(cause, "eager_in", rough)
    monkeypatch.setattr(check, "eager_in", rough)
    engine = make(bundle, lambda logits: logits * np.float32(1.3))
    ran = cli("parity", engine, "--against", checkpoint, "--graph", bundle)
    assert ran.code == 3 and "CAUSE  the precision: eager PyTorch in float32 is itself too far from float64" in ran.out


@pytest.mark.parametrize("low", [(1, 1), (2, 4), (4, 17)])
def test_what_no_profile_takes_is_not_run(
    cli: Cli, make: Make, bundle: Path, checkpoint: Path, low: tuple[int, int]
) -> None:
    """Whatever the profile is, parity stays within it: all is checked that can be."""
    engine = make(bundle, profiles=(Profile(min=low, opt=(4, 17), max=(4, 17)),))
    ran = cli("parity", engine, "--against", checkpoint, "--json")
    result = json.loads(ran.out)
    assert ran.code == 0 and all(
        low[0] <= B <= 4 and low[1] <= T for B, T in (row["shape"] for row in result["shapes"])
    )
    ran = cli("parity", engine, "--against", checkpoint, "--shapes", "1x1,5x17")
    assert ran.code == 2 and "5x17: this engine takes" in ran.err


def test_without_a_gpu_the_exit_code_is_4(
    cli: Cli, make: Make, bundle: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--device` need not be given: an engine has one choice."""
    engine = make(bundle)
    monkeypatch.setattr(trt, "why_no_gpu", lambda: "there is no NVIDIA driver.")
    ran = cli("parity", engine, "--against", checkpoint)
    assert ran.code == 4 and "needs a GPU, and there is no NVIDIA driver" in ran.err
    assert cli("parity", engine, "--against", checkpoint, "--device", "cpu").code == 1


def test_its_graph_is_known_by_its_hash(cli: Cli, make: Make, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = make(bundle)

    def engine() -> Engine:
        return open_engine(path)

    assert engine().graph is None
    assert engine().built_from(bundle).graph == bundle / "logits.onnx"
    copy = beside(bundle, path)
    assert engine().graph == copy / "logits.onnx"
    renamed = Path(shutil.copytree(bundle, tmp_path / "renamed"))
    (renamed / "gptexport.json").unlink()
    (renamed / "logits.onnx").rename(renamed / "mine.onnx")
    assert engine().built_from(renamed / "mine.onnx").graph == renamed / "mine.onnx"
    data = bytearray((copy / "weights.data").read_bytes())
    data[5] ^= 1
    (copy / "weights.data").write_bytes(data)
    assert engine().graph is None
    other = tampered(bundle, tmp_path / "other", set_attribute("Gelu", 1, approximate="tanh"))
    with pytest.raises(InputError, match="was not built from"):
        engine().built_from(other)
    ran = cli("parity", path, "--against", checkpoint, "--graph", other)
    assert ran.code == 1 and "was not built from" in ran.err
    ran = cli("parity", bundle, "--against", checkpoint, "--graph", bundle)
    assert ran.code == 2 and "--graph applies to engines" in ran.err


def test_a_report_of_an_engine(cli: Cli, make: Make, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    engine = make(bundle, lambda logits: logits * np.float32(1.01))
    out = tmp_path / "engine.html"
    assert cli("parity", engine, "--against", checkpoint, "--graph", bundle, "--report", out).code == 3
    text = out.read_text()
    assert "The cause" in text and "the engine, as TensorRT runs it" in text
    assert "tensorrt-rtx 1.7.1.116" in text and read_engine_info(engine).engine.sha256 in text
