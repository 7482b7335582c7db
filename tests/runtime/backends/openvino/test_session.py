"""A graph that OpenVINO has compiled: what it computes, where it writes it, and what is said where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gptexport_runtime
from gptexport_runtime import ArtifactError
from gptexport_runtime.backends.openvino import package, session
from gptexport_runtime.backends.openvino.session import OpenVinoSession
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.contract.names import META_BLOCK_SIZE
from tests.support.tiny import TINY

pytestmark = pytest.mark.skipif(not package.is_installed(), reason="openvino is not installed")

GRAPH = TINY / "logits.onnx"
IDS = np.arange(12).reshape(3, 4)


def test_it_computes_what_onnxruntime_computes() -> None:
    with gptexport_runtime.load(GRAPH, "openvino") as gpt, gptexport_runtime.load(GRAPH, "cpu") as cpu:
        for ids in (IDS, IDS[:1], IDS[:, :1], np.zeros((2, 16), np.int64)):
            np.testing.assert_allclose(gpt.logits(ids), cpu.logits(ids), atol=1e-5)
        out = np.full((3, 4, 61), np.nan, np.float32)
        assert gpt.logits(IDS, out=out) is out
        np.testing.assert_array_equal(out, gpt.logits(IDS))


def test_what_it_says_of_itself() -> None:
    opened = OpenVinoSession(GRAPH, OpenOptions())
    assert [(value.name, value.type, value.shape) for value in opened.get_inputs()] == [
        ("input_ids", "tensor(int64)", [None, None])
    ]
    assert [(value.name, value.type, value.shape) for value in opened.get_outputs()] == [
        ("logits", "tensor(float)", [None, None, 61])
    ]
    assert opened.get_modelmeta().custom_metadata_map[META_BLOCK_SIZE] == "16"


def test_a_graph_in_memory_finds_its_weights() -> None:
    """As parity gives it one, with more outputs than the file's."""
    opened = OpenVinoSession(GRAPH.read_bytes(), OpenOptions(), GRAPH)
    (logits,) = opened.run(["logits"], {"input_ids": IDS})
    again = np.empty_like(logits)  # it was compiled while its file was there
    opened.compute({"input_ids": IDS}, "logits", again)
    np.testing.assert_array_equal(logits, again)


def test_threads_take_turns() -> None:
    with gptexport_runtime.load(GRAPH, "openvino") as gpt:
        expected = [gpt.logits(IDS + i) for i in range(4)]
        wrong: list[int] = []

        def call(i: int) -> None:
            for _ in range(50):
                if not np.array_equal(gpt.logits(IDS + i), expected[i]):
                    wrong.append(i)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_ids_that_may_not_be_written() -> None:
    ids = IDS.copy()
    ids.flags.writeable = False
    with gptexport_runtime.load(GRAPH, "openvino") as gpt:
        np.testing.assert_array_equal(gpt.logits(ids), gpt.logits(IDS))


def test_a_graph_in_memory_takes_no_strangers_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("logits.onnx", "weights.data"):
        shutil.copy(TINY / name, tmp_path)
    (tmp_path / "notes.txt").write_text("not ours")
    linked: list[str] = []

    def link(file: Path, as_: Path) -> None:
        linked.append(file.name)
        shutil.copy(file, as_)

    monkeypatch.setattr(session, "_link", link)
    path = tmp_path / "logits.onnx"
    OpenVinoSession(path.read_bytes(), OpenOptions(), path)
    assert linked == ["weights.data"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), "damaged or not an ONNX graph"),
        (lambda path: path.write_bytes(b"<html></html>"), "damaged or not an ONNX graph"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "damaged or not an ONNX graph"),
        (lambda path: path.with_name("weights.data").unlink(), "external data must lie beside it"),
        (lambda path: path.with_name("weights.data").write_bytes(b"cut"), "external data must lie beside it"),
    ],
)
def test_a_damaged_file(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    for name in ("logits.onnx", "weights.data"):
        shutil.copy(TINY / name, tmp_path)
    damage(tmp_path / "logits.onnx")
    with pytest.raises(ArtifactError, match=words):
        gptexport_runtime.load(tmp_path / "logits.onnx", "openvino").logits(IDS)


CODE = """
import os, sys
import gptexport_runtime
from gptexport_runtime import BackendUnavailableError, load

gpt = load(sys.argv[1], "openvino")
{before}
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
{after}
"""
TRY = """
try:
    load(sys.argv[1], "openvino")
except BackendUnavailableError as error:
    assert "was used before this process was forked" in str(error) and "spawn" in str(error)
else:
    raise SystemExit(3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("before", ["", "gpt.logits([[1, 2]])", "gpt.close()"])
@pytest.mark.parametrize("after", ["", TRY])
def test_a_forked_child_ends(before: str, after: str) -> None:
    """And opens none of its own, where it would wait for threads that it does not have."""
    code = CODE.replace("{before}", before).replace("{after}", after)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(GRAPH)], timeout=60, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
