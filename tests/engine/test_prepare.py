"""What is rewritten for TensorRT computes what was exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from gptexport.engine import open_source
from gptexport.engine.prepare import Prepared, prepare_graph

Export = Callable[..., Path]
IDS = np.random.default_rng(0).integers(0, 97, (3, 17))


def run(model: onnx.ModelProto, bundle: Path, name: str) -> np.ndarray:
    """With ONNX Runtime, the weights in the bundle."""
    path = bundle / name
    path.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"input_ids": IDS})
    finally:
        path.unlink()
    return np.asarray(logits)


def test_float32_logits_are_the_same(export: Export) -> None:
    bundle = export("float32")
    source = open_source(bundle).graph
    before = source.SerializeToString()
    rewritten, prepared = prepare_graph(source)
    assert prepared == Prepared(padded_vocab=100, float32_norms=0)
    assert source.SerializeToString() == before  # a copy was rewritten
    np.testing.assert_allclose(run(rewritten, bundle, "r.onnx"), run(source, bundle, "s.onnx"), rtol=0, atol=1e-5)


def test_float16_logits_are_the_same_but_for_rounding(export: Export) -> None:
    bundle = export("float16")
    source = open_source(bundle).graph
    rewritten, prepared = prepare_graph(source)
    assert prepared == Prepared(padded_vocab=104, float32_norms=7)
    expected = run(source, bundle, "s.onnx")
    np.testing.assert_allclose(run(rewritten, bundle, "r.onnx"), expected, rtol=0, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_layer_norm_takes_and_gives_float32(dtype: str, export: Export) -> None:
    rewritten, _ = prepare_graph(open_source(export(dtype)).graph)
    casts = {node.output[0]: node for node in rewritten.graph.node if node.op_type == "Cast"}
    norms = [node for node in rewritten.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 7
    assert all(casts[name].attribute[0].i == onnx.TensorProto.FLOAT for node in norms for name in node.input)


def test_weights_stay_outside(export: Export) -> None:
    rewritten, _ = prepare_graph(open_source(export("float32")).graph)
    assert rewritten.ByteSize() < 100_000


@pytest.mark.parametrize("sizes", [{"vocab_size": 104}, {"tied": False}])
def test_nothing_is_padded_where_nothing_is_gained(sizes: dict[str, int], export: Export) -> None:
    rewritten, prepared = prepare_graph(open_source(export("bfloat16", **sizes)).graph)
    assert prepared.padded_vocab is None
    assert "Slice" not in Counter(node.op_type for node in rewritten.graph.node)
