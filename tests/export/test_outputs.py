"""An export is whole or not there at all. How that is done, tests/staging tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import OutputError, OutputExistsError
from gptexport.export import export_onnx
from gptexport.staging import watched
from gptexport.tokenizers import BundledTokenizer
from gptexport_runtime import load
from tests.support.few import few
from tests.support.outputs import listing


@pytest.mark.parametrize("out", ["gpt", "gpt.onnx", "deep/er/gpt"])
@pytest.mark.parametrize("failure", few([KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError], 2))
def test_a_failure_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, out: str, failure: type[BaseException]
) -> None:
    def fail(step: str, path: Path) -> None:
        if step == "write" and path.suffix == ".onnx":
            raise failure

    with pytest.raises((KeyboardInterrupt, RuntimeError, OutputError)), watched(fail):
        export_onnx(checkpoint, tmp_path / out)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("file", few(["tokenizer.json", "tokenizer.model", "characters.json"], 1))
def test_force_replaces_the_tokenizer_too(checkpoint: Checkpoint, tmp_path: Path, file: str) -> None:
    """It is no stranger's file, which would be kept, or be in the way of the new one."""
    for data in (b"old", b"new"):
        words = BundledTokenizer(file, 50, file, data)
        export_onnx(checkpoint, tmp_path / "gpt", graphs=["logits"], tokenizer=words, force=True)
        assert (tmp_path / "gpt" / file).read_bytes() == data
    export_onnx(checkpoint, tmp_path / "gpt", graphs=["logits"], force=True)
    assert not (tmp_path / "gpt" / file).exists()


def test_force_keeps_the_old_one_until_the_new_one_is_there(ckpt: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    out.mkdir()
    for file in bundle.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    (out / "weights.data").write_bytes(b"old")

    def fail(step: str, path: Path) -> None:
        if path.name == "gptexport.json":
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"), watched(fail):
        export_onnx(load_checkpoint(str(ckpt)), out, force=True)
    assert (out / "weights.data").read_bytes() == b"old"
    with pytest.raises(OutputExistsError, match="--force"):
        export_onnx(load_checkpoint(str(ckpt)), out)
    export_onnx(load_checkpoint(str(ckpt)), out, force=True)
    assert (out / "weights.data").read_bytes() == (bundle / "weights.data").read_bytes()
    assert listing(tmp_path) == ["gpt", *(f"gpt/{name}" for name in listing(bundle))]


@pytest.mark.slow
def test_the_checkpoint_inside_the_bundle_outlives_it(ckpt: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    export_onnx(load_checkpoint(str(ckpt)), out)
    (out / "ckpt.pt").write_bytes(ckpt.read_bytes())
    export_onnx(load_checkpoint(str(out / "ckpt.pt")), out, force=True)
    assert (out / "ckpt.pt").read_bytes() == ckpt.read_bytes()
    with load(out, "cpu") as gpt:
        assert gpt.logits([[1, 2]]).shape[:2] == (1, 2)
