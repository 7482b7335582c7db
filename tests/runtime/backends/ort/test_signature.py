"""A graph that is not of the head that it is taken for is refused with what it has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptexport_runtime import ArtifactError
from gptexport_runtime.backends.ort.signature import read_signature
from gptexport_runtime.contract import heads


def value(name: str, type: str, *shape: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, type=type, shape=list(shape))


IDS, LOGITS = value("input_ids", "tensor(int64)", "B", "T"), value("logits", "tensor(float)", "B", "T", 61)
FOREIGN = {
    "two inputs": ([IDS, value("mask", "tensor(int64)", "B", "T")], [LOGITS], "mask tensor(int64) [B,T] -> logits"),
    "int32 ids": ([value("input_ids", "tensor(int32)", "B", "T")], [LOGITS], "input_ids tensor(int32) [B,T]"),
    "1-D ids": ([value("input_ids", "tensor(int64)", "T")], [LOGITS], "input_ids tensor(int64) [T]"),
    "fixed T": ([value("input_ids", "tensor(int64)", "B", 8)], [LOGITS], "input_ids tensor(int64) [B,8]"),
    "two outputs": ([IDS], [LOGITS, value("loss", "tensor(float)")], "loss tensor(float) []"),
    "float64 logits": ([IDS], [value("logits", "tensor(double)", "B", "T", 61)], "logits tensor(double)"),
    "last position": ([IDS], [value("logits", "tensor(float)", "B", 1, 61)], "logits tensor(float) [B,1,61]"),
    "2-D logits": ([IDS], [value("logits", "tensor(float)", "B", 61)], "logits tensor(float) [B,61]"),
    "no V": ([IDS], [value("logits", "tensor(float)", "B", "T", "V")], "does not tell its vocab_size"),
}


@pytest.mark.parametrize(("inputs", "outputs", "message"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_graph_is_refused_with_what_it_has(inputs: list[Any], outputs: list[Any], message: str) -> None:
    session = SimpleNamespace(
        get_inputs=lambda: inputs,
        get_outputs=lambda: outputs,
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
    )
    with pytest.raises(ArtifactError) as caught:
        read_signature(session, Path("some.onnx"), heads.LOGITS)
    assert message in str(caught.value)


def test_a_vocabulary_that_the_graph_leaves_free_is_told_by_its_metadata() -> None:
    session = SimpleNamespace(
        get_inputs=lambda: [IDS],
        get_outputs=lambda: [value("logits", "tensor(float)", "B", "T", None)],
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={"gptexport.vocab_size": "61"}),
    )
    found = read_signature(session, Path("some.onnx"), heads.LOGITS)
    assert (found.info.vocab_size, found.output_shape(2, 5)) == (61, (2, 5, 61))


def padded(row: str, V: int, kind: str = "tensor(bfloat16)") -> SimpleNamespace:
    meta = {"gptexport.vocab_size": "61", "gptexport.logits_row": row}
    return SimpleNamespace(
        get_inputs=lambda: [IDS],
        get_outputs=lambda: [value("logits", kind, "B", "T", V)],
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=meta),
    )


def test_rows_of_logits_may_be_longer_than_the_vocabulary_if_the_graph_says_so() -> None:
    found = read_signature(padded("64", 64), Path("some.onnx"), heads.LOGITS)
    output = found.output_of(2, 5)
    assert (found.info.vocab_size, output.shape, output.written, output.kind.name, output.nbytes) == (
        *(61, (2, 5, 61), (2, 5, 64), "bfloat16"),
        2 * 2 * 5 * 64,
    )
    for row, V in (("64", 128), ("60", 60)):
        with pytest.raises(ArtifactError, match=f"logits_row is {row} and gptexport.vocab_size 61"):
            read_signature(padded(row, V), Path("some.onnx"), heads.LOGITS)


def test_other_heads_are_float32_and_as_long_as_the_vocabulary() -> None:
    session = SimpleNamespace(
        get_inputs=lambda: [IDS, value("lengths", "tensor(int64)", "B")],
        get_outputs=lambda: [value("logits", "tensor(bfloat16)", "B", 61)],
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
    )
    with pytest.raises(ArtifactError, match="is not a last graph"):
        read_signature(session, Path("some.onnx"), heads.LAST)
