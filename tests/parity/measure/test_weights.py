"""Every weight where a graph stores it, held against the checkpoint's."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity.measure.weights import compare_weights, worst_rows
from gptexport.precision import BFLOAT16, FLOAT16, FLOAT32, PRECISIONS
from tests.support.fault_catalogue import row_by
from tests.support.faults import edit_weight, scale_weight, tampered


def test_every_row_of_the_embeddings(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also the rows that no ids of the grid touch."""
    model = load_checkpoint(str(checkpoint)).model
    made = tampered(bundle, tmp_path / "b", edit_weight("wte.weight", row_by(42, 1.0001))) / "logits.onnx"
    wte, wpe, others = compare_weights(model, made, FLOAT32)
    assert (wte.name, wte.passed, wpe.name, wpe.passed) == ("rows of wte", False, "rows of wpe", True)
    assert (others.name, others.passed, others.max_change) == ("other weights", True, 0.0)
    assert worst_rows(model, made, FLOAT32)["transformer.wte"].worst == 42
    assert all(i.passed for i in compare_weights(model, bundle / "logits.onnx", FLOAT32))
    assert all(i.passed for i in compare_weights(model, made, FLOAT16)), "half a rounding of float16 is 5e-4"
    broken = tampered(bundle, tmp_path / "n", edit_weight("wpe.weight", row_by(3, np.nan))) / "logits.onnx"
    assert not compare_weights(model, broken, FLOAT32)[1].passed


def test_every_weight_where_it_is_stored(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A bias that is off by less than the noise of the model shows here; and only the one that is off is named."""
    model = load_checkpoint(str(checkpoint)).model
    off = edit_weight("h.1.mlp.c_proj.bias", lambda b: b + 1e-6 * (np.arange(len(b)) == 7))
    made = tampered(bundle, tmp_path / "b", off) / "logits.onnx"
    *_, others = compare_weights(model, made, FLOAT32)
    assert (others.name, others.passed) == ("other weights (h.1.mlp.c_proj.bias)", False)
    assert compare_weights(model, made, BFLOAT16)[-1].passed


def test_weights_of_another_export_may_be_turned_without_a_word(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """(in, out) under the plain name, as in graphs made of Hugging Face's Conv1D."""

    def turned(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith(".T"):
                for node in model.graph.node:
                    node.input[:] = [tensor.name.removesuffix(".T") if i == tensor.name else i for i in node.input]
                tensor.name = tensor.name.removesuffix(".T")

    model = load_checkpoint(str(checkpoint)).model
    names = ("h.0.attn.c_proj.weight", "h.1.attn.c_attn.weight")  # square and not
    right = tampered(bundle, tmp_path / "right", turned) / "logits.onnx"
    assert compare_weights(model, right, FLOAT32)[-1].max_change == 0
    for name in names:
        made = tampered(bundle, tmp_path / name, scale_weight(name, 1.001), turned) / "logits.onnx"
        assert compare_weights(model, made, FLOAT32)[-1].name == f"other weights ({name})"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_right_in_the_dtype_of_the_export(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """Also those that are so small that float16 keeps few bits of them: rounding is no fault."""
    loaded = load_checkpoint(str(checkpoint))
    with torch.no_grad():
        loaded.model.get_parameter("transformer.h.0.attn.c_attn.bias").mul_(1e-6)
    made = export_onnx(replace(loaded, model=copy.deepcopy(loaded.model)), tmp_path / "gpt", dtype=dtype)
    found = compare_weights(loaded.model, made.path / "logits.onnx", PRECISIONS[dtype])
    assert [(i.name, i.passed) for i in found] == [
        ("rows of wte", True),
        ("rows of wpe", True),
        ("other weights", True),
    ]
    assert max(i.max_change for i in found) == 0


@pytest.mark.parametrize("layout", ["links", "hard links"])
def test_files_may_be_laid_out_as_a_hubs_cache_lays_them_out(
    bundle: Path, checkpoint: Path, tmp_path: Path, layout: str
) -> None:
    """ONNX Runtime opens them; so must parity, with an error in the weights or without."""
    made = tmp_path / "snapshots" / "1"
    made.mkdir(parents=True)
    blobs = tmp_path / "blobs"
    shutil.copytree(bundle, blobs)
    for file in blobs.iterdir():
        if layout == "links":
            (made / file.name).symlink_to(f"../../blobs/{file.name}")
        else:
            os.link(file, made / file.name)
    model = load_checkpoint(str(checkpoint)).model
    assert all(i.passed for i in compare_weights(model, made / "logits.onnx", FLOAT32))
    with torch.no_grad():
        model.get_parameter("transformer.h.0.attn.c_attn.bias").mul_(1.001)
    assert not compare_weights(model, made / "logits.onnx", FLOAT32)[-1].passed
