"""docs/bundle.md is complete and true: the reader that it prints works, and its tables list what an export writes."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.cli.app import run
from gptexport_runtime import GPTExportError, load
from tests.support.builders import nanogpt_meta, tiny_nanogpt
from tests.support.greedy import agreement
from tests.support.pages import ROOT, code_blocks, quoted, section, table

PAGE = ROOT / "docs" / "bundle.md"
EXPORTS = {
    "portable": [],
    "float16": ["--dtype", "float16"],
    "cpu": ["--target", "cpu"],
    "cuda": ["--target", "cuda"],
    "int8": ["--target", "cpu", "--quantize", "int8"],
}
IDS = [[5, 44, 3, 90, 21, 7], [12, 0, 96, 61, 8, 33]]  # (B,T)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nanogpt(tmp_path_factory.mktemp("nanogpt") / "ckpt.pt")


@pytest.fixture(scope="module")
def bundles(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each kind that the CPU runs; the first has a tokenizer and a certificate."""
    folder = tmp_path_factory.mktemp("bundles")
    meta = nanogpt_meta(folder / "meta.pkl")
    for name, options in EXPORTS.items():
        tokenizer = ["--tokenizer", str(meta)] if name == "portable" else []
        assert run(["onnx", str(ckpt), "-o", str(folder / name), "-q", *options, *tokenizer]) == 0
    assert run(["parity", str(folder / "portable"), "--against", str(ckpt), "--shapes", "1x1,3x5", "-q"]) == 0
    return {name: folder / name for name in EXPORTS}


@pytest.fixture(scope="module")
def reader() -> Callable[[Path], Any]:
    """The class that the page prints."""
    namespace: dict[str, Any] = {}
    exec(compile(_reader_source(), str(PAGE), "exec"), namespace)
    bundle: Callable[[Path], Any] = namespace["Bundle"]
    return bundle


def _reader_source() -> str:
    (code,) = [block.text for block in code_blocks(PAGE) if block.language == "python"]
    return code


def _manifest(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "gptexport.json").read_text())
    return data


def _keys(heading: str) -> list[str]:
    """The keys of the first table under a heading, as they stand in its first column."""
    return [name for row in table(section(PAGE, heading)) for name in quoted(row[0])]


def test_the_reader_needs_numpy_and_onnxruntime_alone() -> None:
    tree = ast.parse(_reader_source())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"hashlib", "json", "pathlib", "numpy", "onnxruntime"}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_reader_computes_the_logits_of_the_runtime(
    name: str, bundles: dict[str, Path], reader: Callable[[Path], Any]
) -> None:
    with load(bundles[name], "cpu") as session:
        expected = session.logits(IDS)
    np.testing.assert_allclose(reader(bundles[name]).logits(IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["portable", "cpu", "cuda"])
def test_the_reader_generates_what_eager_would(
    name: str, ckpt: Path, bundles: dict[str, Path], reader: Callable[[Path], Any]
) -> None:
    tokens = reader(bundles[name]).generate(IDS, 5)
    assert tokens.shape == (2, 5)
    model = load_checkpoint(str(ckpt)).model
    found = agreement(model, [np.array(row) for row in IDS], list(tokens))
    assert found.tokens == 10 and found.wrong == 0


@pytest.mark.parametrize("name", EXPORTS)
def test_the_reader_generates_what_the_runtime_does(
    name: str, bundles: dict[str, Path], reader: Callable[[Path], Any]
) -> None:
    with load(bundles[name], "cpu") as session:
        expected = session.generate(IDS, max_new_tokens=5, temperature=0)
    assert reader(bundles[name]).generate(IDS, 5).tolist() == [list(row) for row in expected]


def _damage_version(bundle: Path) -> None:
    _edit(bundle, format_version=2)


def _damage_graph(bundle: Path) -> None:
    data = bytearray((bundle / "logits.onnx").read_bytes())
    data[-1] ^= 1
    (bundle / "logits.onnx").write_bytes(data)


def _truncate_weights(bundle: Path) -> None:
    data = (bundle / "weights.data").read_bytes()
    (bundle / "weights.data").write_bytes(data[:-1])


def _point_outside(bundle: Path) -> None:
    graphs = _manifest(bundle)["graphs"]
    graphs["logits"]["file"] = "../logits.onnx"
    _edit(bundle, graphs=graphs)


def _other_device(bundle: Path) -> None:
    _edit(bundle, runs_on=["cuda"])


def _edit(bundle: Path, **changes: Any) -> None:
    (bundle / "gptexport.json").write_text(json.dumps({**_manifest(bundle), **changes}))


@pytest.mark.parametrize(
    "damage",
    [_damage_version, _damage_graph, _truncate_weights, _point_outside, _other_device],
    ids=lambda f: f.__name__,
)
def test_the_reader_and_the_runtime_refuse_the_same(
    damage: Callable[[Path], None], bundles: dict[str, Path], reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(bundles["cpu"], tmp_path / "copy")
    damage(copy)
    with pytest.raises(ValueError):
        reader(copy)
    with pytest.raises(GPTExportError):
        load(copy, "cpu")


def test_the_reader_refuses_the_weights_of_another_export(
    bundles: dict[str, Path], reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(bundles["cpu"], tmp_path / "copy")
    other = tiny_nanogpt(tmp_path / "other.pt", seed=1)
    assert run(["onnx", str(other), "-o", str(tmp_path / "other"), "--target", "cpu", "-q"]) == 0
    shutil.copy(tmp_path / "other" / "weights.data", copy / "weights.data")  # as long as those that were there
    with pytest.raises(ValueError, match="another export"):
        reader(copy).logits(IDS)


def test_a_bundle_from_before_0_2_opens_without_runs_on(
    bundles: dict[str, Path], reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    copy = shutil.copytree(bundles["portable"], tmp_path / "copy")
    old = {key: value for key, value in _manifest(copy).items() if key != "runs_on"}
    (copy / "gptexport.json").write_text(json.dumps(old))
    with load(copy, "cpu") as session:
        np.testing.assert_allclose(reader(copy).logits(IDS), session.logits(IDS), atol=1e-5)
    (copy / "gptexport.json").write_text(json.dumps({**old, "target": "cuda", "dtype": "bfloat16"}))
    with pytest.raises(ValueError, match="cuda only"):
        reader(copy)


def test_the_page_lists_every_key_of_the_manifest_and_no_other(bundles: dict[str, Path]) -> None:
    manifest = _manifest(bundles["portable"])
    assert sorted(_keys("The manifest")) == sorted(manifest)
    assert sorted(_keys("File entries")) == sorted(manifest["graphs"]["logits"])
    assert sorted(_keys("`source`")) == sorted(manifest["source"])
    assert sorted(_keys("The tokenizer")) == sorted(manifest["tokenizer"])
    assert sorted(_keys("The parity certificate")) == sorted(manifest["parity"])


def test_the_page_lists_every_key_of_the_model(bundles: dict[str, Path]) -> None:
    told = _keys("`model`") + quoted(section(PAGE, "`model`"))
    assert set(_manifest(bundles["portable"])["model"]) <= set(told)


def test_every_file_of_a_bundle_is_on_the_page_and_in_the_manifest(bundles: dict[str, Path]) -> None:
    names = {path.name for path in bundles["portable"].iterdir()}
    assert names <= set(_keys("Files"))
    manifest = _manifest(bundles["portable"])
    listed = [*manifest["graphs"].values(), manifest["weights"], manifest["tokenizer"]["file"]]
    assert names == {entry["file"] for entry in listed} | {"gptexport.json"}
    for entry in listed:
        data = (bundles["portable"] / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_a_certificate_names_the_files_it_was_measured_on(bundles: dict[str, Path]) -> None:
    manifest = _manifest(bundles["portable"])
    parity = manifest["parity"]
    assert parity["passed"] is True and parity["reasons"] == []
    assert parity["graphs_sha256"] == {head: entry["sha256"] for head, entry in manifest["graphs"].items()}
    assert parity["weights_sha256"] == manifest["weights"]["sha256"]
    assert parity["checkpoint_sha256"] == manifest["source"]["sha256"]


@pytest.mark.parametrize("name", EXPORTS)
def test_weights_lie_on_pages_each_once_with_zeros_between(name: str, bundles: dict[str, Path]) -> None:
    data = (bundles[name] / "weights.data").read_bytes()
    places = set()
    for graph in bundles[name].glob("*.onnx"):
        model = onnx.load(str(graph), load_external_data=False)
        assert not model.functions
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {item.key: item.value for item in tensor.external_data}
                assert entry["location"] == "weights.data"
                places.add((int(entry["offset"]), int(entry["length"]), tensor.data_type))
    ordered = sorted(places)
    assert all(offset % 4096 == 0 for offset, _, _ in ordered)
    ends = [offset + length for offset, length, _ in ordered]
    content, last_line = data[: ends[-1]], data[ends[-1] :]
    assert last_line == f"gptexport-weights {hashlib.sha256(content).hexdigest()}\n".encode()
    for end, (offset, _, _) in zip(ends, ordered[1:], strict=False):
        assert end <= offset and not any(data[end:offset])
    assert len({(kind, data[offset : offset + length]) for offset, length, kind in ordered}) == len(ordered)


@pytest.mark.parametrize("name", EXPORTS)
def test_graphs_state_their_limits_and_the_interface_of_the_page(name: str, bundles: dict[str, Path]) -> None:
    rows = {quoted(row[0])[0]: row for row in table(section(PAGE, "The graphs"))}
    for head, entry in _manifest(bundles[name])["graphs"].items():
        model = onnx.load(str(bundles[name] / entry["file"]), load_external_data=False)
        limits = {item.key: item.value for item in model.metadata_props}
        weights = (bundles[name] / "weights.data").read_bytes()[-65:-1].decode()
        limits_only = {"gptexport.block_size": "17", "gptexport.vocab_size": "97"}
        quantized = {"gptexport.activation_block": "128"} if _manifest(bundles[name])["quantize"] else {}
        assert limits == {**limits_only, **quantized, "gptexport.weights": weights}
        inputs = [value.name for value in model.graph.input if not value.name.startswith(("past_key", "past_value"))]
        outputs = [value.name for value in model.graph.output if not value.name.startswith("present")]
        assert [word for word in quoted(rows[head][1]) if "[" not in word] == inputs
        assert quoted(rows[head][2])[:1] == outputs


@pytest.mark.parametrize("name", ["portable", "cpu", "cuda"])
def test_without_the_same_memory_in_and_out_the_numbers_are_the_same(name: str, bundles: dict[str, Path]) -> None:
    """What the page promises of a reader that passes the outputs of one call as the inputs of the next."""
    import onnxruntime as ort

    ids = np.array(IDS)
    session = ort.InferenceSession(str(bundles[name] / "decode.onnx"), providers=["CPUExecutionProvider"])
    caches = [value for value in session.get_inputs() if value.name.startswith(("past_key", "past_value"))]
    cache = {v.name: np.zeros((2, v.shape[1], 17, v.shape[3]), np.float32) for v in caches}
    past = np.zeros(2, np.int64)
    for new in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
        feed = {"input_ids": new, "lengths": np.full(2, new.shape[1]), "past_lengths": past, **cache}
        logits, *present = session.run(None, feed)
        cache = dict(zip(cache, present, strict=True))
        past = past + new.shape[1]
    with load(bundles[name], "cpu") as runtime:
        np.testing.assert_allclose(logits, runtime.last_logits(ids), atol=1e-5)


def test_padding_and_rows_that_rest_are_as_the_page_says(bundles: dict[str, Path], ckpt: Path) -> None:
    """A prompt that is padded, then a step in which one row repeats its last token and so stays as it is."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(bundles["cpu"] / "decode.onnx"), providers=["CPUExecutionProvider"])
    caches = [value for value in session.get_inputs() if value.name.startswith(("past_key", "past_value"))]
    cache = {v.name: np.zeros((2, v.shape[1], 17, v.shape[3]), np.float32) for v in caches}
    rows = [[5, 44, 3, 90], [12, 77]]
    padded = np.array([rows[0], [*rows[1], 0, 0]])
    feed = {"input_ids": padded, "lengths": np.array([4, 2]), "past_lengths": np.zeros(2, np.int64)}
    _, *present = session.run(None, {**feed, **cache})
    cache = dict(zip(cache, present, strict=True))
    step = {"input_ids": np.array([[90], [61]]), "lengths": np.array([1, 1]), "past_lengths": np.array([3, 2])}
    logits = session.run(["logits"], {**step, **cache})[0]
    model = load_checkpoint(str(ckpt)).model
    for got, text in zip(logits, [rows[0], [*rows[1], 61]], strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([text]))[0, -1].numpy()
        np.testing.assert_allclose(got, expected, atol=2e-5)
