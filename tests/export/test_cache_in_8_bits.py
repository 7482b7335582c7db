"""`--quantize-cache`: what the cache holds, what it costs, that prompts lose nothing by it, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import gptexport_runtime
from gptexport.architectures.llama import Llama, LlamaConfig
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import cache_scales, export_onnx, settle
from gptexport.export.cache_scales import ROOM, write_text
from gptexport.export.cached_in_8_bits import LARGEST, MANY
from gptexport.parity import check_parity
from gptexport.recipe import Limits, Recipe
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.host import HostStore
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.contract.heads import DECODE
from gptexport_runtime.generate.cache import Cache
from tests.export.test_int8 import LLAMA, V, relative_rms
from tests.support.builders import SIZES, own, random_weights, tiny_nanogpt
from tests.support.cli import Cli
from tests.support.llama_builders import randomize

T = 40  # more than MANY, so that a prompt can be of many tokens
LIMITS = Limits(block_size=T, vocab_size=V)


def gpt2(folder: Path) -> Checkpoint:
    sizes: dict[str, Any] = {**SIZES, "n_embd": 48, "block_size": T}
    return load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt", weights=random_weights(**sizes, bias=True), **sizes)))


def grouped(_folder: Path) -> Checkpoint:
    """Rotary positions, RMSNorm, two queries a key."""
    model = Llama(LlamaConfig(**{**LLAMA, "block_size": T}))
    randomize(model)
    return own(model, block_size=T, vocab_size=V)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GPT-2 in int8: with its cache in 8 bits, and in float32."""
    folder = tmp_path_factory.mktemp("gpt2")
    export_onnx(gpt2(folder), folder / "narrow", quantize="int8", quantize_cache=True)
    export_onnx(gpt2(folder), folder / "wide", quantize="int8")
    return folder / "narrow" / DECODE.file, folder / "wide" / DECODE.file


def held(graph: Path, pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What a cache (2, n_layer, B, n_kv_head, T, head_size) holds after pieces of ids (B,t), and the last logits."""
    decoder = OrtBackend(CPU, {DECODE.name: graph}).open_decoder(DECODE)
    B, length = len(pieces[0]), sum(piece.shape[1] for piece in pieces)
    memory = decoder.allocate(B, length)
    with Cache(decoder, B, length, V, memory=memory) as cache, cache.in_use():
        for piece in pieces:
            logits = cache.feed(list(piece)).copy()
    assert isinstance(memory.store, HostStore)
    return memory.store.values, logits


def scales(graph: Path) -> np.ndarray:
    """(2, n_layer, 1, n_kv_head, 1, head_size)."""
    found = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(str(graph)).graph.initializer}
    layers = sum(name.startswith("past_key") for name in found)
    return np.stack([[found[f"past_{side}_{i}.scale"] for i in range(layers)] for side in ("key", "value")])


def test_the_cache_of_a_gpt2_is_the_one_in_float32_rounded(exported: tuple[Path, Path]) -> None:
    check_rounded(*exported)


def test_so_is_a_llamas_and_the_manifest_says_it(tmp_path: Path) -> None:
    narrow, wide = (tmp_path / name / DECODE.file for name in ("narrow", "wide"))
    done = export_onnx(grouped(tmp_path), narrow.parent, quantize="int4", quantize_cache=True)
    assert done.manifest.cache == "int8" and "cache in 8 bits" in done.manifest.checked
    export_onnx(grouped(tmp_path), wide.parent, quantize="int4")
    check_rounded(narrow, wide)


def check_rounded(narrow: Path, wide: Path) -> None:
    ids = np.random.default_rng(1).integers(0, V, (2, MANY + 9))
    expected, logits = held(wide, [ids])
    found, actual = held(narrow, [ids])
    assert found.dtype == np.int8 and 4 * found.nbytes == expected.nbytes
    assert np.array_equal(actual, logits), "a prompt attends in float32"
    steps = scales(narrow)
    cut = np.clip(expected, -(LARGEST + 1) * steps, LARGEST * steps)
    assert (np.abs(found * steps - cut) <= 0.501 * steps).all()
    assert np.mean(cut != expected) < 0.01
    one_by_one, stepped = held(narrow, list(np.split(ids, ids.shape[1], axis=1)))
    assert np.abs(one_by_one * steps - cut).mean() < 2 * steps.mean(), "both ways write the same"
    assert relative_rms(stepped, logits) < 0.05


def test_many_tokens_behind_others_are_read_as_one_by_one(exported: tuple[Path, Path]) -> None:
    narrow, wide = exported
    ids = np.random.default_rng(1).integers(0, V, (1, T))
    at_once = [ids[:, :7], ids[:, 7:]]
    assert at_once[1].shape[1] >= MANY
    _, expected = held(wide, at_once)
    for pieces in (at_once, [ids[:, :7], *np.split(ids[:, 7:], T - 7, axis=1)], [ids[:, :20], ids[:, 20:]]):
        values, actual = held(narrow, pieces)
        assert relative_rms(actual, expected) < 0.05
        assert values.any(axis=(0, 1, 2, 3, 5)).all(), "every token is in the cache"


def test_scales_hold_what_was_seen_and_the_text_that_judges_is_another(exported: tuple[Path, Path]) -> None:
    _, graph = exported
    text = write_text(graph, LIMITS)
    (rows, [long_row]) = text.judged
    assert len(rows) * T >= 1024 and len(long_row) == T and max(row.max() for row in (*rows, long_row)) < V
    values, _ = held(graph, [np.stack(rows)])
    by_name = np.stack([text.scales["past_key_0"], text.scales["past_value_0"]])
    peaks = np.abs(values[:, 0]).max(axis=(1, 3))  # of other text of the same kind
    assert (peaks <= 2 * ROOM * LARGEST * by_name).all()
    assert (peaks > 0.2 * LARGEST * by_name).all(), "scales are no larger than they need to be"


LATE = """
import torch, torch.nn as nn, torch.nn.functional as F
V, C, H, BLOCK = 31, 32, 2, 600

class Late(nn.Module):
    \"\"\"Values that are loud from position 400 on.\"\"\"
    block_size, vocab_size = BLOCK, V

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(BLOCK, C)
        with torch.no_grad():
            self.wpe.weight *= 0.1
            self.wpe.weight[400:] *= 300.0
        self.c_attn, self.head = nn.Linear(C, 3 * C), nn.Linear(C, V)

    def forward(self, idx):
        B, T = idx.shape
        x = self.wte(idx) + self.wpe(torch.arange(T))
        q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(0.01 * q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        return self.head(self.wte(idx) + 0.3 * y)
"""


def test_late_positions_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the scales; and by parity, where scales do not hold them."""
    (tmp_path / "late.py").write_text(LATE)
    checkpoint = load_checkpoint(f"{tmp_path}/late.py:Late")
    export_onnx(checkpoint, tmp_path / "right", quantize="int8w", quantize_cache=True)
    result = check_parity(tmp_path / "right", checkpoint, shapes=[(1, 1), (2, 33), (1, 600)])
    assert result, result.verdict.reasons
    monkeypatch.setattr(cache_scales, "LONGEST", 256)
    export_onnx(checkpoint, tmp_path / "wrong", quantize="int8w", quantize_cache=True)
    result = check_parity(tmp_path / "wrong", checkpoint, shapes=[(1, 1), (2, 33), (1, 600)])
    assert [reason.split(":")[0] for reason in result.verdict.reasons][:1] == ["decode against logits, KL"]
    assert result.diagnosis.attribution is None, "the logits are right"


def test_parity_rows_and_texts(tmp_path: Path) -> None:
    """The bundle passes; a fork and a rewound row go on as they would have; neighbours change nothing."""
    checkpoint = gpt2(tmp_path)
    export_onnx(checkpoint, tmp_path / "gpt", quantize="int8w", quantize_cache=True)
    result = check_parity(tmp_path / "gpt", checkpoint, shapes=[(1, 1), (3, 17), (2, T)])
    assert result, result.verdict.reasons
    decode = next(row for row in result.verdict.invariances if row.name.startswith("decode"))
    assert 0 < decode.max_change < decode.allowed
    prompt = [3, 1, 4, 1, 5]
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        alone = gpt.generate([prompt], max_new_tokens=20, temperature=0)[0]
        together = gpt.generate([prompt, [2, 7], prompt], max_new_tokens=20, temperature=0)
        assert np.array_equal(alone, together[0]) and np.array_equal(alone, together[2])
        with gpt.cache() as cache:
            gpt.generate([prompt], max_new_tokens=9, temperature=0, cache=cache)
            cache.rewind(7)
            with cache.fork(2) as fork:
                again = gpt.generate([[*prompt, *alone][:8]] * 2, max_new_tokens=17, temperature=0, cache=fork)
        assert [row.tolist() for row in again] == [alone[3:].tolist()] * 2


def test_what_it_loses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(settle, "divergence", lambda *_: 0.1)
    done = export_onnx(gpt2(tmp_path), tmp_path / "b", quantize="int8", quantize_cache=True, progress=said.append)
    assert sum("keys and values in 8 bits lose a mean KL divergence of 1.0e-01" in line for line in said) == 1
    assert any("without quantize_cache nothing of it is lost" in note for note in done.notes)


def test_inspect_and_the_command_line(cli: Cli, tmp_path: Path) -> None:
    gpt2(tmp_path)
    assert not cli("onnx", tmp_path / "ckpt.pt", "-o", tmp_path / "gpt", "--quantize", "int8", "--quantize-cache").code
    graph = onnx.load(str(tmp_path / "gpt" / DECODE.file), load_external_data=False).graph
    types = {value.type.tensor_type.elem_type for value in (*graph.input[3:], *graph.output[1:])}
    assert types == {TensorProto.INT8}
    assert "int8, cache int8" in cli("inspect", tmp_path / "gpt").out
    assert json.loads((tmp_path / "gpt" / "gptexport.json").read_text())["cache"] == "int8"


def test_refused(tmp_path: Path) -> None:
    for recipe, reason in (
        ({}, "target portable in float32"),
        ({"target": "cpu"}, "where weights are quantized"),
        ({"target": "cuda", "dtype": "float16"}, "target cuda in float16"),
        ({"quantize": "int8", "graphs": ["logits"]}, "without the graph decode"),
    ):
        with pytest.raises(ExportError, match=reason):
            Recipe.of(**recipe, quantize_cache=True)
    small = load_checkpoint(str(tiny_nanogpt(tmp_path / "small.pt")))  # heads of 4, which no fused kernel takes
    cases = (
        (tmp_path / "gpt.onnx", None, "no cache"),
        (tmp_path / "gpt", "genai", "layout genai"),
        (tmp_path / "gpt", None, "GroupQueryAttention does not compute its attention"),
    )
    for out, layout, reason in cases:
        with pytest.raises(ExportError, match=reason):
            export_onnx(small, out, quantize="int8", quantize_cache=True, layout=layout)
        assert not out.exists()
