"""The verdict vouches for the very files that it was measured on, and for no others."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from gptexport.artifacts import describe_artifact
from gptexport.errors import OutputError
from gptexport.parity.verdict.certificate import certify
from gptexport.parity.verdict.judge import Verdict
from gptexport.precision import Gates
from gptexport_runtime import ArtifactError, load
from gptexport_runtime.contract.names import MANIFEST_FILE
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.faults import scale_weight, tampered

QUICK = ("--shapes", "1x3,2x17")


@pytest.fixture
def proved(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """A bundle that passed."""
    copy = Path(shutil.copytree(bundle, tmp_path / "proved"))
    assert cli("parity", copy, "--against", checkpoint, *QUICK).code == 0
    return copy


def edit(bundle: Path, **changes: object) -> None:
    manifest = json.loads((bundle / "gptexport.json").read_text())
    (bundle / "gptexport.json").write_text(json.dumps({**manifest, **changes}))


def test_a_proved_bundle_opens(proved: Path) -> None:
    with load(proved, require_parity=True) as session:
        assert session.logits([[1, 2]]).shape == (1, 2, 97)


def test_one_that_was_never_checked_does_not(bundle: Path) -> None:
    with pytest.raises(ArtifactError, match=r"its parity was never checked. Check it with `gptexport parity"):
        load(bundle, require_parity=True)


def test_one_that_failed_does_not(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    made = tampered(bundle, tmp_path / "b", scale_weight("ln_f.weight", 1.01))
    assert cli("parity", made, "--against", checkpoint, "--quick").code == 3
    assert cli("parity", made, "--against", checkpoint, *QUICK).code == 3
    with pytest.raises(ArtifactError, match="its parity check failed: RMS error is"):
        load(made, require_parity=True)
    load(made).close()


def test_a_verdict_of_another_graph_does_not_count(cli: Cli, proved: Path, tmp_path: Path) -> None:
    """The graph is replaced, and the manifest made to agree: only the verdict gives it away."""
    record = json.loads((proved / "gptexport.json").read_text())["parity"]
    made = tampered(proved, tmp_path / "b", scale_weight("ln_f.weight", 1.01))
    edit(made, parity=record)
    load(made).close()
    with pytest.raises(ArtifactError, match="does not belong to it: it was measured on other graphs"):
        load(made, require_parity=True)
    ran = cli("inspect", made)
    assert ran.code == 1
    assert "passed on cpu, noise ratio" in ran.out and "but not of these graphs and weights" in ran.out
    assert "problem: its parity verdict does not belong to it" in ran.out


def test_a_verdict_of_other_weights_does_not_count(cli: Cli, proved: Path) -> None:
    """The weights are replaced by others of the same size, and the manifest made to agree."""
    data = bytearray((proved / "weights.data").read_bytes())
    data[0] ^= 1
    (proved / "weights.data").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"weights.data has sha256"):
        load(proved, require_parity=True)  # implies verify
    ran = cli("inspect", proved)
    assert ran.code == 1 and "weights.data has sha256" in ran.out, "a verdict is shown of no weights but its own"
    manifest = json.loads((proved / "gptexport.json").read_text())
    edit(proved, weights={**manifest["weights"], "sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(ArtifactError, match="it was measured on other weights"):
        load(proved, require_parity=True)
    assert cli("inspect", proved, "--verify").code == 1


@pytest.mark.parametrize("parity", ["passed", ["passed"], True])
def test_a_damaged_verdict_is_one_clear_error(cli: Cli, proved: Path, parity: object) -> None:
    edit(proved, parity=parity)
    with pytest.raises(ArtifactError, match=r"manifest: parity is .*; expected an object"):
        load(proved, require_parity=True)
    ran = cli("inspect", proved)
    assert ran.code == 1 and "bug" not in ran.err


def test_a_lone_graph_has_no_verdict(bundle: Path) -> None:
    with pytest.raises(ArtifactError, match="has no manifest, so no parity verdict"):
        load(bundle / "logits.onnx", require_parity=True)


@pytest.mark.parametrize("options", [("--quick",), ("--gate", "noise_ratio=9")])
def test_a_lesser_check_is_no_certificate(
    cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    assert cli("parity", copy, "--against", checkpoint, *options).code == 0
    with pytest.raises(ArtifactError, match="never checked"):
        load(copy, require_parity=True)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def passed() -> Verdict:
    return Verdict(dtype="float32", gates=Gates(), shapes=(), invariances=(), reasons=())


def test_the_verdict_goes_into_the_manifest(copy: Path) -> None:
    certify(describe_artifact(copy), passed(), "0" * 64, "cpu")
    with load(copy, "cpu", require_parity=True) as session:
        assert session.manifest is not None and session.manifest.parity is not None


@pytest.mark.parametrize("part", ["weights", "graphs"])
def test_a_bundle_that_was_replaced_meanwhile_gets_no_verdict_of_another(copy: Path, part: str) -> None:
    manifest = copy / MANIFEST_FILE
    artifact = describe_artifact(copy)
    data = json.loads(manifest.read_text())
    entry = data["weights"] if part == "weights" else data["graphs"]["score"]
    entry["sha256"] = "f" * 64  # as an export --force does
    manifest.write_text(json.dumps(data))
    with pytest.raises(OutputError, match="was replaced while it was measured"):
        certify(artifact, passed(), "0" * 64, "cpu")
    assert json.loads(manifest.read_text()) == data


def test_a_link_in_the_bundle_does_not_say_where_the_verdict_is_written(copy: Path) -> None:
    """Of a hub's cache each file is a link; of a hostile bundle anything may be one."""
    home = copy.parent / "snapshots" / "1"
    home.parent.mkdir()
    copy = copy.rename(home)
    outside = home.parents[1] / "blobs" / "0"
    outside.parent.mkdir()
    (copy / MANIFEST_FILE).rename(outside)
    (copy / MANIFEST_FILE).symlink_to(outside)
    (copy / f".{MANIFEST_FILE}.tmp").symlink_to(copy.parent / "bashrc")
    before = outside.read_bytes()
    certify(describe_artifact(copy), passed(), "0" * 64, "cpu")
    assert outside.read_bytes() == before
    assert not (copy.parent / "bashrc").exists()
    assert not (copy / MANIFEST_FILE).is_symlink()
    assert json.loads((copy / MANIFEST_FILE).read_text())["parity"]["passed"] is True


def test_a_failure_against_something_else_does_not_cost_the_certificate(
    cli: Cli, proved: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Another file, or the same with another GELU: neither says anything of the bundle."""
    made = tmp_path / "b"
    shutil.copytree(proved, made)
    before = (made / MANIFEST_FILE).read_bytes()
    for source, options in ((tiny_nanogpt(tmp_path / "other.pt", seed=7), ()), (checkpoint, ("--gelu", "tanh"))):
        ran = cli("parity", made, "--against", source, "--shapes", "1x3", *options)
        assert ran.code == 3 and "the failure is not recorded" in ran.err
        assert (made / MANIFEST_FILE).read_bytes() == before
    load(made, require_parity=True).close()
