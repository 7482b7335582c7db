"""A graph that OpenVINO has compiled: what it computes, where it writes it, and what is said where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gptexport_runtime
from gptexport_runtime import ArtifactError
from gptexport_runtime.backends.openvino import package
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
    session = OpenVinoSession(GRAPH, OpenOptions())
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", [None, None])
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("logits", "tensor(float)", [None, None, 61])
    ]
    assert session.get_modelmeta().custom_metadata_map[META_BLOCK_SIZE] == "16"


def test_a_graph_in_memory_finds_its_weights() -> None:
    """As parity gives it one, with more outputs than the file's."""
    session = OpenVinoSession(GRAPH.read_bytes(), OpenOptions(), GRAPH)
    (logits,) = session.run(["logits"], {"input_ids": IDS})
    again = np.empty_like(logits)  # it was compiled while its file was there
    session.compute({"input_ids": IDS}, "logits", again)
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


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "logits.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match=r"does not load into openvino 20\d\d"):
        gptexport_runtime.load(path, "openvino")


CODE = """
import os, sys
from gptexport_runtime import load

with load(sys.argv[1], "openvino") as gpt:
    gpt.logits([[1, 2]])
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_child_ends() -> None:
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(GRAPH)]
    ran = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
