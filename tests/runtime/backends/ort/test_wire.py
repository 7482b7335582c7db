"""A graph with functions is refused before ONNX Runtime unfolds them, wherever in the file they are."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gptexport_runtime import ArtifactError, load
from gptexport_runtime.backends.ort import wire
from gptexport_runtime.backends.ort.wire import refuse_functions

GROUP = b"\x9b\x06\x08\x01\x9c\x06"  # an unknown field of the old kind that has no length; parsers skip it
FIXED = b"\x99\x06" + bytes(8) + b"\x9d\x06" + bytes(4)  # unknown numbers of 8 and of 4 bytes


def doubling(count: int) -> bytes:
    """A graph that calls the first of `count` functions, each of which calls the next one twice."""
    functions = []
    for number in range(count):
        last = number == count - 1
        called = ("Identity", "") if last else (f"f{number + 1}", "own")
        nodes = [
            helper.make_node(called[0], ["x"], ["y"], domain=called[1]),
            helper.make_node(called[0], ["y"], ["z"], domain=called[1]),
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{number}", ["x"], ["z"], nodes, opsets))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "z")]
    node = helper.make_node("f0" if count else "Identity", ["x"], ["z"], domain="own" if count else "")
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return bytes(helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.mark.parametrize("before", [b"", GROUP, FIXED, 3 * GROUP + FIXED], ids=["first", "group", "fixed", "both"])
def test_functions_that_double_are_refused(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(before + doubling(25))
    assert len(onnx.load(path).functions) == 25, "a parser finds them"
    with pytest.raises(ArtifactError, match="has functions, which are not read"):
        load(path)


def test_a_tag_past_32_bits_is_read_as_onnx_runtime_reads_it(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(doubling(6))
    function = b"".join(b"\xca\x81\x80\x80\x10" + _sized(f.SerializeToString()) for f in model.functions)
    del model.functions[:]
    data = model.SerializeToString() + function
    onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])  # it finds what the graph calls
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match="has functions, which are not read"):
        load(tmp_path / "g.onnx")


def _sized(data: bytes) -> bytes:
    """With its length before it, as two bytes of a varint."""
    return bytes([len(data) & 127 | 128, len(data) >> 7]) + data


def test_a_graph_without_functions_is_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    for data in (doubling(0), GROUP + FIXED + doubling(0), b"", b"\x80" * 30, b"\x0a\xff\x7f"):
        path.write_bytes(data)
        refuse_functions(path)


def test_a_file_of_countless_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(b"\x08\x01" * 101)
    monkeypatch.setattr(wire, "MOST_FIELDS", 101)
    refuse_functions(path)
    monkeypatch.setattr(wire, "MOST_FIELDS", 99)
    with pytest.raises(ArtifactError, match="more parts than a graph has"):
        refuse_functions(path)
