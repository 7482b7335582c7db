"""`gptexport gguf`: what a reader of such files finds. That llama.cpp computes the model: scripts/check_gguf.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from gptexport.checkpoints import load_checkpoint
from gptexport.converters import gguf as module
from gptexport.converters.gguf import write_gguf
from gptexport.errors import ExportError, OutputExistsError
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport.tokenizers.as_json import splits_as_gpt2
from tests.checkpoints.test_huggingface_llama import CASES, folder
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.llama_builders import tiny_neox


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors of a file."""
    reader = GGUFReader(str(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def llama(tmp_path: Path, case: str) -> Any:
    kind, config = CASES[case]
    folder(tmp_path / "theirs", kind, **config)
    return load_checkpoint(str(tmp_path / "theirs"))


def test_gpt2(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", bias=False)), gelu="tanh")
    done = write_gguf(loaded, tmp_path / "m.gguf")
    fields, tensors = read(tmp_path / "m.gguf")
    config, weights = loaded.config.to_dict(), loaded.model.state_dict()
    assert (done.architecture, fields["general.architecture"]) == ("gpt2", "gpt2")
    assert fields["gpt2.context_length"] == config["block_size"] and fields["gpt2.vocab_size"] == config["vocab_size"]
    assert fields["tokenizer.ggml.model"] == "no_vocab" and done.notes == ()
    assert len(tensors) == 4 + 12 * config["n_layer"], "a tied head is not written, and every linear has a bias"
    qkv = weights["transformer.h.1.attn.c_attn.weight"].numpy()
    assert np.array_equal(tensors["blk.1.attn_qkv.weight"], qkv) and not tensors["blk.1.attn_qkv.bias"].any()
    assert np.array_equal(tensors["position_embd.weight"], weights["transformer.wpe.weight"].numpy())


def test_gpt_neox_is_refused(tmp_path: Path) -> None:
    tiny_neox().save_pretrained(tmp_path / "theirs")
    with pytest.raises(ExportError, match=r"a GPT-NeoX is not written for llama.cpp.*convert_hf_to_gguf"):
        write_gguf(load_checkpoint(str(tmp_path / "theirs")), tmp_path / "m.gguf")


def test_an_erf_gelu_is_told_to_be_approximated(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")), gelu="erf")
    assert "GELU by the tanh formula" in write_gguf(loaded, tmp_path / "m.gguf").notes[0]


def test_llama_turns_neighbours(tmp_path: Path) -> None:
    """Row 2j of a head in the file is row j, and row 2j + 1 is row j + D/2."""
    loaded = llama(tmp_path, "Llama with biases")
    write_gguf(loaded, tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    config, weights = loaded.config.to_dict(), loaded.model.state_dict()
    heads, D = config["n_kv_head"], config["head_size"]
    rows = [head * D + j + half for head in range(heads) for j in range(D // 2) for half in (0, D // 2)]
    for kind in ("weight", "bias"):
        keys = weights[f"model.layers.2.self_attn.k_proj.{kind}"].numpy()
        assert np.array_equal(tensors[f"blk.2.attn_k.{kind}"], keys[rows])
    values = weights["model.layers.2.self_attn.v_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.2.attn_v.weight"], values)


def test_qwen_turns_halves(tmp_path: Path) -> None:
    loaded = llama(tmp_path, "Qwen3")
    assert write_gguf(loaded, tmp_path / "m.gguf").architecture == "qwen3"
    _, tensors = read(tmp_path / "m.gguf")
    keys = loaded.model.state_dict()["model.layers.2.self_attn.k_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.2.attn_k.weight"], keys) and "blk.2.attn_q_norm.weight" in tensors


def test_llama_3_1_says_how_much_slower_each_pair_turns(tmp_path: Path) -> None:
    write_gguf(llama(tmp_path, "Llama 3.1"), tmp_path / "m.gguf")
    slower = read(tmp_path / "m.gguf")[1]["rope_freqs.weight"]
    assert slower.shape == (5,) and slower.min() >= 1 and slower.max() == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize(
    ("case", "message"),
    [("Mistral with a window", "sliding windows"), ("Qwen2 with windows and YaRN", "sliding windows")],
)
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path, case: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_gguf(llama(tmp_path, case), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-3), ("bfloat16", 8e-3), ("q8_0", 1e-2)])
def test_smaller_weights(tmp_path: Path, dtype: str, bound: float) -> None:
    """Matrices are rounded, vectors are not; a row that is no multiple of 32 keeps 16 bits in q8_0."""
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", n_embd=64, n_head=2, bias=True)))
    write_gguf(loaded, tmp_path / "m.gguf", dtype=dtype)
    reader = GGUFReader(str(tmp_path / "m.gguf"))
    from gguf.quants import dequantize

    found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    weights = loaded.model.state_dict()
    up, norm = weights["transformer.h.0.mlp.c_fc.weight"].numpy(), weights["transformer.h.0.ln_1.weight"].numpy()
    error = np.abs(found["blk.0.ffn_up.weight"] - up).max() / np.abs(up).max()
    assert 0 < error < bound and np.array_equal(found["blk.0.attn_norm.weight"], norm)


def test_a_tokenizer_that_llama_cpp_knows(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=300)))
    done = write_gguf(loaded, tmp_path / "m.gguf", tokenizer=tokenizer_to_bundle("bytes"))
    fields, _ = read(tmp_path / "m.gguf")
    assert done.notes == () or "GELU" in done.notes[0]
    assert fields["tokenizer.ggml.tokens"][ord("a")] == "a" and fields["tokenizer.ggml.tokens"][299] == "[unused299]"
    assert fields["tokenizer.ggml.token_type"] == [1] * 256 + [5] * 44
    assert fields["tokenizer.ggml.merges"] == ["[none] [none]"]


def test_a_tokenizer_that_splits_otherwise_is_left_out() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}
    assert splits_as_gpt2({"pre_tokenizer": byte_level, "model": model})
    assert not splits_as_gpt2({"pre_tokenizer": {**byte_level, "use_regex": False}, "model": model})
    assert not splits_as_gpt2({"pre_tokenizer": {**byte_level, "add_prefix_space": True}, "model": model})
    assert not splits_as_gpt2({"pre_tokenizer": byte_level, "model": model, "normalizer": {"type": "NFC"}})
    assert not splits_as_gpt2({"pre_tokenizer": byte_level, "model": {**model, "type": "Unigram"}})


def test_what_is_read_again_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    real = module._read_back

    def damaged(gguf: Any, path: Path, tensors: dict[str, Any]) -> None:
        data = bytearray(path.read_bytes())
        data[GGUFReader(str(path)).tensors[3].data_offset + 2] ^= 1
        path.write_bytes(data)
        real(gguf, path, tensors)

    monkeypatch.setattr(module, "_read_back", damaged)
    with pytest.raises(ExportError, match="is not what was written"):
        write_gguf(loaded, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_the_command(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    answer = json.loads(cli("gguf", ckpt, "-o", tmp_path / "m.gguf", "--dtype", "q8_0", "--json", "-q").out)
    assert answer["architecture"] == "gpt2" and answer["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert cli("gguf", ckpt, "-o", tmp_path / "m").code == 2
    there = cli("gguf", ckpt, "-o", tmp_path / "m.gguf")
    assert there.code == 1 and "exists already. Move it away" in there.err
    monkeypatch.setitem(sys.modules, "gguf", None)
    without = cli("gguf", ckpt, "-o", tmp_path / "n.gguf")
    assert without.code == 4 and "pip install gguf" in without.err


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_gguf(loaded, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
