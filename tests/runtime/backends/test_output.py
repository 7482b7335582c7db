"""Outputs whose rows are longer than V, or whose floats are short: the host gets (B,T,V) float32, the device a view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper

from gptexport_runtime.backends.gpu import runner
from gptexport_runtime.backends.gpu.dlpack import CPU
from gptexport_runtime.backends.ort.device import DeviceBinding
from gptexport_runtime.backends.ort.graph import OrtGraph
from gptexport_runtime.backends.ort.host import HostBinding
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cpu import CPU as CPU_PROVIDER
from gptexport_runtime.backends.ort.session import open_session
from gptexport_runtime.backends.output import BFLOAT16, FLOAT16, FLOAT32, FloatType, Output
from gptexport_runtime.contract.heads import LOGITS
from tests.support.fake_driver import FakeMemory

V, ROW = 5, 8
KINDS: dict[int, FloatType] = {TensorProto.FLOAT: FLOAT32, TensorProto.FLOAT16: FLOAT16, TensorProto.BFLOAT16: BFLOAT16}


def table(kind: FloatType) -> Any:
    """(V,ROW): what stands behind the first V is to be seen by nobody."""
    few = np.arange(V * ROW, dtype=np.float32).reshape(V, ROW) / 4
    few[:, V:] = np.nan
    return (few.view(np.uint32) >> 16).astype(np.uint16) if kind is BFLOAT16 else few.astype(kind.stored)


def write_graph(path: Path, kind: int) -> None:
    """Each id's row of the table."""
    weight = helper.make_tensor("w", kind, (V, ROW), table(KINDS[kind]).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "input_ids"], ["logits"])],
        "logits",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ("B", "T"))],
        [helper.make_tensor_value_info("logits", kind, ("B", "T", ROW))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"gptexport.vocab_size": str(V), "gptexport.logits_row": str(ROW)})
    onnx.save(model, path)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS.values()])
@pytest.mark.parametrize("where", ["host", "device"])
def test_the_caller_gets_what_counts_in_float32(
    where: str, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FETCHED", 3 * ROW * 4)  # three rows of float32 at a time
    path = tmp_path / "logits.onnx"
    write_graph(path, kind)
    binding: Any = HostBinding("cpu", tokens_at_once=7) if where == "host" else DeviceBinding(FakeMemory())
    opened = binding.open(
        lambda _captures: open_session(path, CPU_PROVIDER, OpenOptions(threads=1)), LOGITS, OpenOptions(), "a graph"
    )
    graph = OrtGraph(opened, path, LOGITS)
    ids = np.random.default_rng(0).integers(0, V, (4, 5))
    expected = np.arange(V * ROW, dtype=np.float32).reshape(V, ROW)[ids][..., :V] / 4
    for _ in range(5):  # on the device also as a captured graph
        out = np.full((4, 5, V), -1, np.float32)
        graph.run(ids, np.full(4, 5), out)
        assert_array_equal(out, expected)
    logits = graph.run_on_device(ids)
    assert (logits.shape, logits.dtype) == ((4, 5, V), KINDS[kind].name)
    if KINDS[kind] is not BFLOAT16 and where == "host":  # numpy knows no bfloat16
        taken = np.from_dlpack(logits)
        assert taken.strides == tuple(stride * taken.itemsize for stride in (5 * ROW, ROW, 1))
        assert_array_equal(taken, expected)


def test_rows_as_long_as_they_count_are_read_where_they_are() -> None:
    assert Output("logits", (2, 3, 5)).is_plain and Output("logits", (2, 3, 5), row=5).is_plain
    assert not Output("logits", (2, 3, 5), row=8).is_plain and not Output("logits", (2, 3, 5), kind=FLOAT16).is_plain
    assert Output("logits", (2, 3, 5), row=8).strides == (24, 8, 1)
    assert CPU == 1
