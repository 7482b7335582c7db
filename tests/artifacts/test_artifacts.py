"""Every kind of artifact answers the same questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptexport.artifacts import Bundle, Engine, SingleGraph, Stage, describe_artifact, find
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.precision import FLOAT16, FLOAT32
from gptexport_runtime import ArtifactError
from gptexport_runtime.contract.engine import Profile, sidecar_path
from tests.support.builders import tiny_nanogpt
from tests.support.fake_engine import write_engine, write_sidecar

SMALL, LARGE = Profile(min=(1, 2), opt=(1, 4), max=(2, 8)), Profile(min=(1, 1), opt=(4, 16), max=(4, 17))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nanogpt(tmp_path_factory.mktemp("checkpoint") / "ckpt.pt")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return export_onnx(load_checkpoint(str(checkpoint), block_size=13), folder / "gpt", dtype="float16").path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = write_engine(tmp_path)
    write_sidecar(path, profiles=(SMALL, LARGE), options={"tf32": True}, dtype="float32")
    return path


def test_a_bundle(bundle: Path) -> None:
    for path in (bundle, bundle / "gptexport.json"):
        artifact = describe_artifact(path)
        assert artifact.built_from(bundle) is None
        assert isinstance(artifact, Bundle)
        assert (artifact.kind, artifact.path, artifact.precision) == ("bundle", bundle, FLOAT16)
        assert artifact.graph == bundle / "logits.onnx"
        assert [head.name for head in artifact.heads] == ["logits", "last", "score", "decode"]
        assert artifact.source["options"] == {"block_size": 13}
        assert artifact.model["n_layer"] == 3
        assert artifact.fit([(5, 5)]) == [(5, 5)] and artifact.accepts(99, 13)


def test_a_single_graph(bundle: Path) -> None:
    artifact = describe_artifact(bundle / "logits.onnx")
    assert artifact.certify({"passed": True}) is None, "there is no place for a verdict"
    assert isinstance(artifact, SingleGraph)
    assert (artifact.kind, artifact.precision, artifact.graph) == ("graph", FLOAT16, bundle / "logits.onnx")
    assert [head.name for head in artifact.heads] == ["logits"]


def test_an_engine(engine: Path) -> None:
    artifact = describe_artifact(engine)
    assert isinstance(artifact, Engine)
    assert (artifact.kind, artifact.precision, artifact.device, artifact.graph) == ("engine", FLOAT32, "cuda", None)
    assert artifact.stages[-1] is Stage.ENGINE and artifact.changes == {Stage.ENGINE: ["--tf32"]}
    assert artifact.accepts(1, 1) and not artifact.accepts(5, 17)
    assert artifact.fit([(1, 1), (8, 5), (1, 99)]) == [(1, 2), (2, 5), (1, 8), (1, 1), (4, 5), (1, 17)]
    assert artifact.limits == "B 1 to 2 and T 2 to 8; or B 1 to 4 and T 1 to 17"
    assert artifact.certify({"passed": True}) == sidecar_path(engine)
    record = json.loads(sidecar_path(engine).read_text())["parity"]
    assert record == {"passed": True, "engine_sha256": artifact.info.engine.sha256}


def test_each_kind_is_inspected(bundle: Path, engine: Path) -> None:
    for path in (bundle, bundle / "logits.onnx", engine):
        artifact = describe_artifact(path)
        found = artifact.inspect()
        assert found.problems == () and json.dumps(found.data)
        assert artifact.facts() is not None


def test_what_is_no_artifact(tmp_path: Path, checkpoint: Path) -> None:
    assert find(checkpoint) is None and find(tmp_path) is None and find(tmp_path / "gone.onnx") is None
    for path, message in ((tmp_path, "is not a bundle"), (tmp_path / "gone.onnx", "does not exist")):
        with pytest.raises(ArtifactError, match=message):
            describe_artifact(path)


@pytest.mark.parametrize("changes", [{"dtype": "float8"}, {"quantize": "int3"}])
def test_a_precision_of_a_later_version_is_refused_by_name(
    bundle: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    manifest = json.loads((bundle / "gptexport.json").read_text())
    (tmp_path / "gptexport.json").write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(ArtifactError, match=f"its precision '{next(iter(changes.values()))}' is not one of"):
        describe_artifact(tmp_path)
