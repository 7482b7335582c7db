"""Where a verdict is written, and where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from gptexport.parity.record import record_verdict

from gptexport.errors import OutputError
from gptexport.parity.verdict import Verdict
from gptexport.precision import Gates
from gptexport_runtime import load
from gptexport_runtime.contract.names import MANIFEST_FILE


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def passed() -> Verdict:
    return Verdict(dtype="float32", gates=Gates(), shapes=(), invariances=(), reasons=())


def test_the_verdict_goes_into_the_manifest(copy: Path) -> None:
    with load(copy, "cpu") as session:
        record_verdict(copy, session, passed(), "0" * 64)
    with load(copy, "cpu", require_parity=True) as session:
        assert session.manifest is not None and session.manifest.parity is not None


@pytest.mark.parametrize("part", ["weights", "graphs"])
def test_a_bundle_that_was_replaced_meanwhile_gets_no_verdict_of_another(copy: Path, part: str) -> None:
    manifest = copy / MANIFEST_FILE
    with load(copy, "cpu") as session:
        data = json.loads(manifest.read_text())
        entry = data["weights"] if part == "weights" else data["graphs"]["score"]
        entry["sha256"] = "f" * 64  # as an export --force does
        manifest.write_text(json.dumps(data))
        with pytest.raises(OutputError, match="was replaced while it was measured"):
            record_verdict(copy, session, passed(), "0" * 64)
    assert json.loads(manifest.read_text()) == data


def test_a_link_in_the_bundle_does_not_say_where_the_verdict_is_written(copy: Path) -> None:
    """Of a hub's cache each file is a link; of a hostile bundle anything may be one."""
    outside = copy.parent / "blob"
    (copy / MANIFEST_FILE).rename(outside)
    (copy / MANIFEST_FILE).symlink_to(outside)
    (copy / f".{MANIFEST_FILE}.tmp").symlink_to(copy.parent / "bashrc")
    before = outside.read_bytes()
    with load(copy, "cpu") as session:
        record_verdict(copy, session, passed(), "0" * 64)
    assert outside.read_bytes() == before
    assert not (copy.parent / "bashrc").exists()
    assert not (copy / MANIFEST_FILE).is_symlink()
    assert json.loads((copy / MANIFEST_FILE).read_text())["parity"]["passed"] is True
