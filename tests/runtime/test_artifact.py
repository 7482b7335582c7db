"""Missing, damaged, foreign: every artifact that is not whole is refused with what it has and what was expected."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_allclose

import gptexport_runtime
from gptexport_runtime import ArtifactError
from gptexport_runtime.backends.ort.providers.trial import TINY_MODEL
from gptexport_runtime.contract.manifest import Manifest
from tests.support.tiny import TINY


@pytest.mark.parametrize("name", ["", "gptexport.json", "logits.onnx"])
def test_opens_a_bundle_its_manifest_or_its_graph(name: str, expected: Any) -> None:
    with gptexport_runtime.load(TINY / name, "cpu", verify=True) as session:
        assert (session.manifest is None) == name.endswith(".onnx")
        assert (session.config.vocab_size, session.config.block_size) == (61, 16)
        assert_allclose(session.logits(expected.ids), expected.logits, atol=2e-5, rtol=0)


def test_opens_a_str_and_a_relative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TINY.parent)
    gptexport_runtime.load("tiny", "cpu").close()
    monkeypatch.chdir(TINY)
    gptexport_runtime.load("gptexport.json", "cpu").close()


def test_opens_links_into_a_store(bundle: Path, expected: Any) -> None:
    """As the Hugging Face hub's cache has them: the files are beside the snapshots, under other names."""
    snapshot = bundle.parent / "snapshots" / "revision"
    snapshot.parent.mkdir()
    (bundle.parent / "blobs").mkdir()
    bundle.rename(snapshot)
    for file in list(snapshot.iterdir()):
        shutil.move(file, bundle.parent / "blobs" / file.stem)
        file.symlink_to(Path("..", "..", "blobs", file.stem))
    with gptexport_runtime.load(snapshot, "cpu") as session:
        assert_allclose(session.logits(expected.ids), expected.logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["gptexport.json", "logits.onnx", "weights.data"])
def test_a_link_out_of_the_bundle_is_not_followed(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle.parent / "elsewhere")
    (bundle / name).symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(ArtifactError, match=f"{name} is a link to something outside of the bundle"):
        gptexport_runtime.load(bundle, "cpu")


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        manifest = json.loads((bundle / "gptexport.json").read_text())
        (bundle / "gptexport.json").write_text(json.dumps({**manifest, **changes}))

    return apply


def in_graph(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Edit the bare graph. `new` is as long as `old`: protobuf counts bytes."""

    def apply(bundle: Path) -> None:
        graph = bundle / "logits.onnx"
        data = graph.read_bytes()
        assert old in data and len(old) == len(new)
        graph.write_bytes(data.replace(old, new))

    return apply


def flip(name: str) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[-1] ^= 1
        (bundle / name).write_bytes(data)

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda bundle: os.truncate(bundle / name, size)


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / name).write_bytes(data)


MANIFEST = Manifest.from_json((TINY / "gptexport.json").read_text())
GRAPH, WEIGHTS = MANIFEST.graphs["logits"], MANIFEST.weights
assert WEIGHTS is not None
OTHER_MODEL = {"vocab_size": 61, "block_size": 32}
ESCAPING = {"file": "sub/../../weights.data", "bytes": 1, "sha256": ""}

# what is done to the bundle, what is opened, what the error says
DAMAGED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda bundle: None, "nothing", "nothing does not exist. Expected a bundle folder or an .onnx file"),
    "no manifest": (remove("gptexport.json"), "", "is not a bundle: it has no gptexport.json"),
    "other file": (write("notes.txt", b""), "notes.txt", "is not a bundle folder, its gptexport.json, an .onnx file"),
    "no JSON": (write("gptexport.json", b"{"), "", "gptexport.json is not JSON"),
    "no text": (
        write("gptexport.json", b"\xff\xfe"),
        "gptexport.json",
        "gptexport.json cannot be read: it is not UTF-8",
    ),
    "other JSON": (write("gptexport.json", b"{}"), "", "is not a bundle manifest"),
    "no logits": (edit(graphs={"score": GRAPH.__dict__}), "", "has no logits graph, only score"),
    "escape": (edit(weights=ESCAPING), "", "file is 'sub/../../weights.data'; expected a plain file name"),
    "other V": (edit(model={"vocab_size": 62}), "", "has vocab_size 61; its manifest says 62"),
    "other block": (edit(model=OTHER_MODEL), "", "has block_size 16; its manifest says 32"),
    "no graph": (remove("logits.onnx"), "", "logits.onnx is missing; gptexport.json lists it"),
    "short graph": (truncate("logits.onnx", 99), "", f"logits.onnx has 99 bytes; gptexport.json says {GRAPH.bytes}"),
    "changed graph": (flip("logits.onnx"), "", f"; gptexport.json says {GRAPH.sha256}"),
    "no weights": (remove("weights.data"), "", "weights.data is missing; gptexport.json lists it"),
    "short weights": (truncate("weights.data", 1000), "", f"has 1000 bytes; gptexport.json says {WEIGHTS.bytes}"),
    "bare, no weights": (remove("weights.data"), "logits.onnx", "Its external data must lie beside it"),
    "bare, short weights": (truncate("weights.data", 1000), "logits.onnx", "logits.onnx does not load: "),
    "bare, truncated": (truncate("logits.onnx", 1000), "logits.onnx", "It is damaged or not an ONNX graph"),
    "bare, empty": (truncate("logits.onnx", 0), "logits.onnx", "It is damaged or not an ONNX graph"),
    "bare, text": (write("logits.onnx", b"hello" * 99), "logits.onnx", "It is damaged or not an ONNX graph"),
    "bare, foreign": (
        write("neg.onnx", TINY_MODEL),
        "neg.onnx",
        "neg.onnx is not a logits graph: it has x tensor(float) [?] -> y tensor(float) [?]; "
        "expected input_ids tensor(int64) [B,T] -> logits tensor(float) [B,T,V]",
    ),
    "bare, other input": (in_graph(b"input_ids", b"input_idx"), "logits.onnx", "it has input_idx tensor(int64) [B,T]"),
    # a dim named B becomes the number 2
    "bare, fixed B": (in_graph(b"\x12\x01B", b"\x08\x82\x00"), "logits.onnx", "it has input_ids tensor(int64) [2,T]"),
    "bare, wrong limit": (
        in_graph(b"gptexport.block_size\x12\x0216", b"gptexport.block_size\x12\x02-1"),
        "logits.onnx",
        "gptexport.block_size is '-1'; expected a positive integer",
    ),
    "bare, contradiction": (
        in_graph(b"gptexport.vocab_size\x12\x0261", b"gptexport.vocab_size\x12\x0260"),
        "logits.onnx",
        "contradicts itself: gptexport.vocab_size is 60, but its logits have V=61",
    ),
}


@pytest.mark.parametrize(("damage", "opened", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_an_artifact_error(
    bundle: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], object], opened: str, message: str
) -> None:
    damage(bundle)
    with pytest.raises(ArtifactError) as caught:
        gptexport_runtime.load(bundle / opened, "cpu")
    assert message in str(caught.value)
    assert str(bundle) in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the error is all there is


def test_changed_weights_are_found_by_verify(bundle: Path) -> None:
    flip("weights.data")(bundle)
    gptexport_runtime.load(bundle, "cpu").close()
    assert WEIGHTS is not None
    with pytest.raises(ArtifactError, match=f"weights.data has sha256 .* says {WEIGHTS.sha256}"):
        gptexport_runtime.load(bundle, "cpu", verify=True)


def test_every_graph_of_the_bundle_is_checked(bundle: Path) -> None:
    """Not the logits alone: a bundle that lost a file is not whole."""
    edit(graphs={"logits": GRAPH.__dict__, "score": {**GRAPH.__dict__, "file": "score.onnx"}})(bundle)
    with pytest.raises(ArtifactError, match=r"score\.onnx is missing"):
        gptexport_runtime.load(bundle, "cpu")


def test_bare_graph_without_metadata_knows_its_vocabulary(bundle: Path) -> None:
    in_graph(b"gptexport.", b"another1x.")(bundle)
    with gptexport_runtime.load(bundle / "logits.onnx", "cpu") as session:
        assert (session.config.vocab_size, session.config.block_size) == (61, None)


def test_silent_manifest_leaves_the_limit_to_the_graph(bundle: Path) -> None:
    edit(model={"vocab_size": 61})(bundle)
    with gptexport_runtime.load(bundle, "cpu") as session:
        assert session.config.block_size == 16
