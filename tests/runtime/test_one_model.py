"""A session is one model for its life, whatever happens to its files; a graph has the weights of its own export."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptexport_runtime import ArtifactError, InputError, load
from gptexport_runtime.files import INTERVAL
from tests.support.few import few
from tests.support.tiny import TINY

IDS = [[1, 2, 3, 4]]


@pytest.fixture
def others(bundles: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and one of another model with the same architecture."""
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx
    from tests.support.builders import tiny_nanogpt

    checkpoint = tiny_nanogpt(tmp_path / "other.pt", n_embd=48, bias=False, seed=5)
    export_onnx(load_checkpoint(str(checkpoint)), tmp_path / "other")
    return Path(shutil.copytree(bundles["portable"], tmp_path / "gpt")), tmp_path / "other"


def _swap_folders(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)


def _swap_weights(one: Path, other: Path) -> None:
    (other / "weights.data").replace(one / "weights.data")


def _swap_a_graph(one: Path, other: Path) -> None:
    (other / "score.onnx").replace(one / "score.onnx")


def _delete(one: Path, other: Path) -> None:
    shutil.rmtree(one)


@pytest.mark.parametrize("prove", few([False, True], 1))
@pytest.mark.parametrize("change", [_swap_folders, _swap_weights, _swap_a_graph, _delete])
def test_graphs_that_are_opened_late_are_of_the_same_model(
    others: tuple[Path, Path], change: Callable[[Path, Path], None], prove: bool
) -> None:
    one, other = others
    if prove:
        manifest = json.loads((one / "gptexport.json").read_text())
        hashes = {name: entry["sha256"] for name, entry in manifest["graphs"].items()}
        weights = manifest["weights"]["sha256"]
        manifest["parity"] = {"passed": True, "graphs_sha256": hashes, "weights_sha256": weights}
        (one / "gptexport.json").write_text(json.dumps(manifest))
    with load(one, "cpu", require_parity=prove) as gpt:
        before = gpt.logits(IDS)
        change(one, other)
        np.testing.assert_array_equal(gpt.logits(IDS), before)  # it is open, and its weights mapped
        for call in (lambda: gpt.score(IDS), lambda: gpt.last_logits(IDS), lambda: gpt.generate(IDS, max_new_tokens=2)):
            with pytest.raises(ArtifactError, match="since the session was opened"):
                call()


def test_an_open_graph_gives_no_numbers_of_weights_that_were_written_into(others: tuple[Path, Path]) -> None:
    """As `cp` does: it keeps the file that is mapped, and changes what is in it."""
    one, other = others
    with load(one, "cpu") as gpt, gpt.cache() as cache:
        gpt.logits(IDS)
        gpt.generate(IDS, max_new_tokens=2, cache=cache)
        with (one / "weights.data").open("r+b") as file:
            file.write((other / "weights.data").read_bytes())
        time.sleep(2 * INTERVAL)
        with pytest.raises(ArtifactError, match="was written into"):
            gpt.logits(IDS)
        with pytest.raises(ArtifactError, match="was written into"):
            gpt.generate(IDS, max_new_tokens=3, cache=cache)


def test_a_session_opens_its_graphs_wherever_the_process_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "gpt")
    monkeypatch.chdir(tmp_path)
    with load("gpt", "cpu") as gpt:
        monkeypatch.chdir("/")
        assert gpt.logits(IDS).shape[:2] == (1, 4)


def test_weights_of_another_export_are_noticed_without_reading_them(others: tuple[Path, Path]) -> None:
    one, other = others
    assert (one / "weights.data").stat().st_size == (other / "weights.data").stat().st_size
    _swap_weights(one, other)
    with pytest.raises(ArtifactError, match=r"weights\.data belongs to another export than logits\.onnx"):
        load(one, "cpu")


def test_a_single_graph_with_the_data_of_another_export_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx, layout
    from tests.support.builders import tiny_nanogpt

    monkeypatch.setattr(layout, "INLINE_BYTES", 1000)
    for seed, name in ((1, "one"), (2, "other")):
        checkpoint = tiny_nanogpt(tmp_path / f"{name}.pt", seed=seed)
        export_onnx(load_checkpoint(str(checkpoint)), tmp_path / name / "gpt.onnx")
    load(tmp_path / "one" / "gpt.onnx", "cpu").close()
    (tmp_path / "other" / "gpt.onnx.data").replace(tmp_path / "one" / "gpt.onnx.data")
    with pytest.raises(ArtifactError, match="belongs to another export"):
        load(tmp_path / "one" / "gpt.onnx", "cpu")


def test_a_cache_of_another_session_is_refused(bundles: dict[str, Path]) -> None:
    with load(bundles["portable"], "cpu") as one, load(bundles["portable"], "cpu") as other:
        with other.cache() as cache, pytest.raises(InputError, match="the cache is another session's"):
            one.generate(IDS, max_new_tokens=2, cache=cache)
        with one.cache() as cache, cache.fork(1) as fork:
            assert len(one.generate(IDS, max_new_tokens=2, cache=fork)[0]) == 2


@pytest.mark.parametrize("name", ["gptexport.json", "logits.onnx", "weights.data"])
def test_a_fifo_in_a_bundle_is_refused_and_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(ArtifactError):
        load(bundle, "cpu")


def test_a_lone_graph_is_of_the_data_that_it_names(others: tuple[Path, Path], tmp_path: Path) -> None:
    """While one is replaced its data have another name for a moment, and those of the old one the usual name."""
    import onnx

    one, other = others
    lone = tmp_path / "lone"
    lone.mkdir()
    model = onnx.load(str(one / "logits.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "gpt.onnx.0123.data"
    (lone / "gpt.onnx").write_bytes(model.SerializeToString())
    shutil.copy(one / "weights.data", lone / "gpt.onnx.0123.data")
    shutil.copy(other / "weights.data", lone / "gpt.onnx.data")
    with load(lone / "gpt.onnx", "cpu") as gpt, load(one, "cpu") as same:
        assert np.array_equal(gpt.logits(IDS), same.logits(IDS))
    shutil.copy(other / "weights.data", lone / "gpt.onnx.0123.data")
    with pytest.raises(ArtifactError, match="belongs to another export"):
        load(lone / "gpt.onnx", "cpu").logits(IDS)


def test_metadata_that_are_not_text_are_damaged(bundles: dict[str, Path], tmp_path: Path) -> None:
    data = (bundles["portable"] / "logits.onnx").read_bytes()
    shutil.copy(bundles["portable"] / "weights.data", tmp_path)
    (tmp_path / "gpt.onnx").write_bytes(data.replace(b"gptexport.vocab_size", b"g\xfftexport.vocab_size"))
    with pytest.raises(ArtifactError, match="its metadata are not UTF-8"):
        load(tmp_path / "gpt.onnx", "cpu")
