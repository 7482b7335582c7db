"""A graph and its data, an engine and its sidecar: replaced together, and only if gptexport wrote them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptexport.errors import OutputError, OutputExistsError
from gptexport.staging import check_output, data_file, staged, sweep, watched, write_file
from gptexport.staging.pair import ENGINE
from gptexport.staging.stage import LOCK
from gptexport_runtime.contract.engine import sidecar_path
from tests.support.outputs import Read, Write, listing, read_engine, read_graph, write_engine, write_graph, write_inline


def test_data_keep_their_usual_name_however_often_they_are_replaced(tmp_path: Path) -> None:
    for tag in ("one", "two", "three"):
        write_graph(tmp_path / "gpt.onnx", tag, force=True)
        assert read_graph(tmp_path / "gpt.onnx") == tag
        assert listing(tmp_path) == ["gpt.onnx", "gpt.onnx.data"]
        assert (tmp_path / "gpt.onnx.data").stat().st_nlink == 1, "onnx opens no weights that have two names"


@pytest.mark.parametrize(
    ("write", "read", "name"), [(write_graph, read_graph, "a.onnx"), (write_engine, read_engine, "a.engine")]
)
def test_folders_above_are_made(tmp_path: Path, write: Write, read: Read, name: str) -> None:
    write(tmp_path / "deep" / "er" / name, "new", False)
    assert read(tmp_path / "deep" / "er" / name) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_data_of_a_graph_that_was_replaced_by_one_without_are_removed(tmp_path: Path) -> None:
    write_graph(tmp_path / "gpt.onnx", "old")
    write_inline(tmp_path / "gpt.onnx", "new", force=True)
    assert listing(tmp_path) == ["gpt.onnx"]


@pytest.mark.parametrize("name", ["gpt.onnx", "gpt.engine"])
def test_what_gptexport_did_not_write_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"another tool's")
    with pytest.raises(OutputExistsError, match="was not written by gptexport"):
        check_output(tmp_path / name, force=True)
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(tmp_path / name, force=False)


def test_a_fifo_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gpt.onnx")
    with pytest.raises(OutputExistsError, match="is not a regular file"):
        check_output(tmp_path / "gpt.onnx", force=True)


@pytest.mark.parametrize("said", [{"format": "another tool's"}, ["gptexport-engine"], "text"])
def test_an_engine_of_another_tool_is_not_replaced(tmp_path: Path, said: object) -> None:
    (tmp_path / "gpt.engine").write_bytes(b"another tool's")
    sidecar_path(tmp_path / "gpt.engine").write_text(json.dumps(said))
    with pytest.raises(OutputExistsError, match="is not its sidecar"):
        check_output(tmp_path / "gpt.engine", force=True)


@pytest.mark.parametrize("write", [write_graph, write_inline])
def test_a_graph_that_appears_at_the_last_moment_is_not_replaced(tmp_path: Path, write: Write) -> None:
    out = tmp_path / "gpt.onnx"

    def appear(step: str, path: Path) -> None:
        if step == "rename" and path == out:
            out.write_text("mine")

    with pytest.raises(OutputExistsError, match="appeared in the meantime"), watched(appear):
        write(out, "new", True)
    assert (listing(tmp_path), out.read_text()) == (["gpt.onnx"], "mine")


def test_data_that_the_graph_does_not_read_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "gpt.onnx.data").write_text("of a graph that was renamed")
    with pytest.raises(OutputExistsError, match="without its graph"):
        check_output(tmp_path / "gpt.onnx", force=True)
    (tmp_path / "gpt.onnx.data").rename(tmp_path / "aside")
    write_inline(tmp_path / "gpt.onnx", "old")
    (tmp_path / "aside").rename(tmp_path / "gpt.onnx.data")
    with pytest.raises(OutputExistsError, match="does not read it"):
        check_output(tmp_path / "gpt.onnx", force=True)


@pytest.mark.parametrize("name", ["gpt.onnx", "gpt.engine"])
def test_a_folder_or_a_link_is_not_replaced_by_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path / name, force=True)
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("elsewhere")
    with pytest.raises(OutputExistsError, match="is a link"):
        check_output(tmp_path / name, force=True)


@pytest.mark.parametrize("late", ["gpt.onnx", "gpt.onnx.data"])
def test_what_appears_in_the_meantime_is_not_replaced(tmp_path: Path, late: str) -> None:
    with pytest.raises(OutputExistsError), staged(tmp_path / "gpt.onnx", force=False) as folder:
        for name in ("gpt.onnx", "gpt.onnx.data"):
            write_file(folder / name, b"new")
        (tmp_path / late).write_text("mine")
    assert listing(tmp_path) == [late]
    assert (tmp_path / late).read_text() == "mine"


def test_data_that_appear_at_the_last_moment_are_not_replaced(tmp_path: Path) -> None:
    """The new graph keeps its own under another name then."""
    out = tmp_path / "gpt.onnx"
    write_inline(out, "old")

    def appear(step: str, path: Path) -> None:
        if step == "replace" and path == out:
            data_file(out).write_text("mine")

    with watched(appear):
        write_graph(out, "new", force=True)
    assert (read_graph(out), data_file(out).read_text()) == ("new", "mine")


@pytest.mark.parametrize("there", ["old", None])
@pytest.mark.parametrize("damaged", [False, True])
def test_an_engine_that_its_sidecar_never_named_is_taken_back(tmp_path: Path, there: str | None, damaged: bool) -> None:
    """Of a run that was killed before the switch: the sweep goes back, not on."""
    home, out = tmp_path / "home", tmp_path / "home" / "gpt.engine"
    made = home / ".gptexport-abcdefgh.tmp" / ENGINE
    made.mkdir(parents=True)
    write_engine(made / out.name, "new")
    (made.parent / LOCK).touch()
    if damaged:
        sidecar_path(made / out.name).write_text("{")
    if there is not None:
        write_engine(tmp_path / out.name, there)
        for path in (tmp_path / out.name, sidecar_path(tmp_path / out.name)):
            path.rename(home / path.name)
    sweep(home)
    assert read_engine(out) == (there or "absent")
    assert listing(home) == ([] if there is None else [out.name, sidecar_path(out).name])


def test_an_engine_and_its_sidecar_are_replaced_together(tmp_path: Path) -> None:
    write_engine(tmp_path / "gpt.engine", "old")
    with pytest.raises(OutputExistsError, match="--force"):
        write_engine(tmp_path / "gpt.engine", "new")
    write_engine(tmp_path / "gpt.engine", "new", force=True)
    assert read_engine(tmp_path / "gpt.engine") == "new"
    assert "before" not in json.loads(sidecar_path(tmp_path / "gpt.engine").read_bytes())
    assert listing(tmp_path) == ["gpt.engine", "gpt.engine.json"]


def test_the_error_is_of_the_output_not_of_the_export(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as raised, staged(tmp_path / "gpt.engine", force=False):
        raise OSError(28, "No space left on device")
    assert type(raised.value) is OutputError
    assert "No space left on device. Nothing was left behind." in str(raised.value)
