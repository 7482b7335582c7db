"""Outputs are whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptexport.checkpoints import Checkpoint
from gptexport.errors import ExportError, OutputExistsError
from gptexport.export import export_onnx
from gptexport.staging import check_output, commit_folder, replace_file, staged


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("out", ["gpt", "gpt.onnx", "deep/er/gpt"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, failure: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("gptexport.export.export.trace_logits", lambda *a, **k: fail())
    with pytest.raises((KeyboardInterrupt, RuntimeError, ExportError)):
        export_onnx(checkpoint, tmp_path / out)
    assert listing(tmp_path) == []


def test_force_keeps_the_old_one_until_the_new_one_is_there(
    checkpoint: Checkpoint, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpt"
    out.mkdir()
    for file in bundle.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    (out / "weights.data").write_bytes(b"old")
    monkeypatch.setattr("gptexport.export.export.run_samples", lambda *_: (_ for _ in ()).throw(ExportError("no")))
    with pytest.raises(ExportError, match="no"):
        export_onnx(checkpoint, out, force=True)
    assert (out / "weights.data").read_bytes() == b"old"
    monkeypatch.undo()
    with pytest.raises(OutputExistsError, match="--force"):
        export_onnx(checkpoint, out)
    export_onnx(checkpoint, out, force=True)
    assert (out / "weights.data").read_bytes() == (bundle / "weights.data").read_bytes()
    assert listing(tmp_path) == ["gpt", *(f"gpt/{name}" for name in listing(bundle))]


def test_an_interrupt_between_the_renames_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpt"
    out.mkdir()
    (out / "gptexport.json").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == out and self.parent.name.endswith(".tmp") and self.name == "gpt":
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.raises(KeyboardInterrupt), staged(out, force=True) as stage:
        (stage / "gpt").mkdir()
        monkeypatch.setattr(Path, "rename", interrupted)
        commit_folder(stage, out)
    monkeypatch.undo()
    assert (out / "gptexport.json").read_text() == "old"
    assert listing(tmp_path) == ["gpt", "gpt/gptexport.json"]


def test_only_what_gptexport_wrote_is_ever_replaced(tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "notes"
    folder.mkdir()
    (folder / "me.jpg").touch()
    file.touch()
    for path, message in [(folder, "other things in it"), (file, "is a file")]:
        with pytest.raises(OutputExistsError, match=message):
            check_output(path, force=True)
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path / "dir.onnx", force=True)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="cannot write into"), staged(tmp_path / "gpt", force=False):
        pass


def test_replace_file_keeps_the_old_one_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gptexport.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ExportError, match="No space left on device"):
        replace_file(path, b"new")
    assert listing(tmp_path) == ["gptexport.json"]
    assert path.read_text() == "old"
