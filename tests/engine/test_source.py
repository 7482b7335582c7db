"""What an engine is built from is held against the contract, whoever made the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from gptexport.engine import open_source
from gptexport.errors import EngineError
from gptexport_runtime import ArtifactError
from gptexport_runtime.contract.names import META_BLOCK_SIZE, META_VOCAB_SIZE


def _graph(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["B", "T"])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["B", "T", 5])
    table = onnx.helper.make_tensor("table", onnx.TensorProto.FLOAT, [5, 5], [0.0] * 25)
    node = onnx.helper.make_node("Gather", ["table", "input_ids"], ["logits"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "gpt", [ids], [logits], [table]))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_plain_graph_is_a_source(tmp_path: Path) -> None:
    source = open_source(_graph(tmp_path / "gpt.onnx", lambda _: None))
    assert (source.vocab_size, source.block_size, list(source.hashes)) == (5, None, ["gpt.onnx"])


@pytest.mark.parametrize("place", ["/etc/passwd", "../x", "", "a\0b", "a" * 300, "sub/x"])
def test_no_path_in_a_graph_is_ever_opened(place: str, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        table = model.graph.initializer[0]
        table.ClearField("float_data")
        table.data_location = onnx.TensorProto.EXTERNAL
        table.external_data.add(key="location", value=place)

    with pytest.raises(ArtifactError, match=r"takes weights from .*; expected the name of a file beside it"):
        open_source(_graph(tmp_path / "gpt.onnx", change))


@pytest.mark.parametrize("key", [META_VOCAB_SIZE, META_BLOCK_SIZE])
@pytest.mark.parametrize("value", ["", "-1", "1.5", "9" * 5000, "\x00", "0"])
def test_limits_that_are_no_numbers_are_refused(key: str, value: str, tmp_path: Path) -> None:
    path = _graph(tmp_path / "gpt.onnx", lambda model: model.metadata_props.add(key=key, value=value) and None)
    with pytest.raises(ArtifactError, match="expected a positive integer"):
        open_source(path)


def test_a_type_that_onnx_does_not_know_is_named_by_its_number(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.elem_type = 2**31 - 1

    with pytest.raises(EngineError, match="logits type 2147483647"):
        open_source(_graph(tmp_path / "gpt.onnx", change))
