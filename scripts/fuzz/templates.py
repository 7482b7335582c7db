"""The valid files that every input begins as, each kind in a folder of its own, small so as to be read quickly."""

from __future__ import annotations

import struct
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from tests.support import format_builders, llama_builders, nanochat_builders
from tests.support.builders import nanogpt_meta, random_weights, tiny_build_nanogpt, tiny_huggingface, tiny_nanogpt
from tests.support.fake_engine import write_engine
from tests.support.llama_builders import LLAMA3, YARN, renamed, save, theirs, weights_of
from tests.support.texts import byte_level_bpe

GPT: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 300}
LLAMA: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 16,
}
TRAINED = {"original_max_position_embeddings": 8}


def templates(root: Path) -> None:
    """Write them all. Takes ten seconds."""
    torch.manual_seed(0)
    root.mkdir(parents=True)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        _gpt2s(root)
        _llamas(root)
        _of_other_code(root)
        _texts(root)
        _exports(root)
        _neither(root)


def _gpt2s(root: Path) -> None:
    for name, legacy in (("nanogpt", False), ("legacy", True)):
        (root / name / "data" / "shakespeare_char").mkdir(parents=True)
        tiny_nanogpt(root / name / "ckpt.pt", legacy=legacy, **GPT)
    tiny_build_nanogpt(_folder(root, "build") / "model_00001.pt", **GPT)
    for name, safetensors, sharded in (("hf", True, False), ("hf-sharded", True, True), ("hf-bin", False, False)):
        hf = {key: value for key, value in GPT.items() if key != "block_size"}
        hf["n_embd"] = 24 if sharded else 8  # shards are of 20 KB
        tiny_huggingface(root / name, safetensors=safetensors, sharded=sharded, n_positions=16, **hf)
    (root / "hf" / "tokenizer_config.json").write_text('{"eos_token": "ab", "add_prefix_space": true}')
    (root / "hf" / "special_tokens_map.json").write_text('{"eos_token": {"content": "ab"}}')
    save(_folder(root, "state-dict") / "weights.pt", {"state_dict": random_weights(**GPT), "epoch": 3})
    format_builders.llmc(_folder(root, "llmc") / "model.bin")
    gpt, _ = format_builders.llms_from_scratch_gpt(qkv_bias=False, **GPT)
    save(_folder(root, "scratch") / "model.pth", gpt)


def _llamas(root: Path) -> None:
    models: dict[str, Any] = {
        "llama": theirs("Llama", **LLAMA, rope_parameters={**LLAMA3, **TRAINED}),
        "mistral": theirs("Mistral", **LLAMA, sliding_window=7),
        "qwen2": theirs("Qwen2", **{**LLAMA, "head_dim": None}, rope_parameters={**YARN, **TRAINED, "factor": 2.0}),
        "qwen3": theirs("Qwen3", **LLAMA, tie_word_embeddings=True),
        "neox": llama_builders.tiny_neox(num_hidden_layers=1, hidden_size=15, intermediate_size=60),
    }
    for name, model in models.items():
        model.save_pretrained(root / f"hf-{name}")
    save(_folder(root, "minimind") / "sft.pth", weights_of(models["qwen3"]))
    names = {p: to.replace("NORM", "weight") for p, to in format_builders.LLMS_FROM_SCRATCH_LLAMA.items()}
    save(_folder(root, "scratch-llama") / "model.pth", renamed(weights_of(theirs("Llama", **LLAMA)), names))


def _of_other_code(root: Path) -> None:
    args = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 16}
    llama = theirs("Llama", **LLAMA, tie_word_embeddings=True)
    format_builders.llama2c(_folder(root, "llama2c") / "ckpt.pt", model=llama, **args)
    fields: dict[str, Any] = {
        "n_layer": 2,
        "n_head": 2,
        "n_query_groups": 1,
        "head_size": 4,
        "n_embd": 8,
        "intermediate_size": 12,
    }
    format_builders.litgpt(root / "litgpt", theirs("Llama", **LLAMA), block_size=16, **fields)
    channels, lambdas, smear, _ = nanochat_builders.GENERATIONS["2026-03-14"]
    nanochat_builders.nanochat(root / "nanochat", nanochat_builders.state_of(channels, lambdas, smear))


def _texts(root: Path) -> None:
    nanogpt_meta(_folder(root, "meta") / "meta.pkl")
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={chr(97 + i): i for i in range(26)} | {"ab": 26}, merges=[("a", "b")])
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(root / "hf" / "tokenizer.json"))
    byte_level_bpe().model.save(str(_folder(root, "vocab")))
    (root / "vocab" / "config.json").write_text('{"model_type": "gpt2"}')
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a", "##b"]
    (_folder(root, "word-piece") / "vocab.txt").write_text("\n".join(words) + "\n")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    state = {"name": "x", "pat_str": r"\p{L}+|\s+", "mergeable_ranks": ranks, "special_tokens": {"<|bos|>": 257}}
    format_builders.pickled(_folder(root, "tiktoken") / "tokenizer.pkl", state)
    (_folder(root, "sentencepiece") / "tokenizer.model").write_bytes(_sentencepiece())
    tokens = _folder(root, "tokens")
    np.arange(200, dtype=np.uint16).tofile(tokens / "val.bin")
    np.save(tokens / "val.npy", np.arange(200, dtype=np.uint16))
    (tokens / "val.txt").write_text("to be or not to be, that is the question\n" * 20)


def _exports(root: Path) -> None:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.cli.app import run
    from gptexport.export import export_onnx
    from gptexport.tokenizers import tokenizer_to_bundle

    write_engine(_folder(root, "engine"))
    source = str(root / "nanogpt" / "ckpt.pt")
    words = tokenizer_to_bundle(str(root / "hf" / "tokenizer.json"))
    export_onnx(load_checkpoint(source), root / "bundle", tokenizer=words)
    export_onnx(load_checkpoint(source), root / "graph" / "gpt.onnx")
    saved = _folder(root, "saved") / "saved.json"
    run(["parity", str(root / "bundle"), "--against", source, "--save", str(saved)])


def _neither(root: Path) -> None:
    """What is told apart from checkpoints by its first bytes, and a user's own module, which is looked into."""
    folder = _folder(root, "foreign")
    (folder / "a.gguf").write_bytes(b"GGUF" + bytes(60))
    np.savez(folder / "b.npz", x=np.arange(3))
    (folder / "c").write_bytes(struct.pack("<i", 20240803) + bytes(1020))
    (folder / "d").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "e").write_bytes(b"\x08\x0a\x12\x07pytorch" + bytes(30))
    (folder / "f").write_bytes(struct.pack("<Q", 16) + b'{"a": {"b": 1}} ')
    (_folder(root, "module") / "mine.py").write_text(
        "import torch\nfrom torch import nn as n\n\nclass Mine(n.Module):\n    pass\n\n\ndef make() -> Mine:\n"
        "    return Mine()\n\n\nfirst, (second, *rest) = 1, (2, 3)\nif True:\n    third: int = 3\n"
    )


def _sentencepiece() -> bytes:
    """A unigram model of 40 pieces, as SentencePiece's protobuf."""

    def field(number: int, body: bytes) -> bytes:
        return bytes([number << 3 | 2, len(body)]) + body

    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), *((chr(97 + i), 1) for i in range(26)), ("▁a", 1)]
    made = b"".join(
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", -i) + bytes([0x18, kind]))
        for i, (text, kind) in enumerate(pieces)
    )
    return made + field(2, b"\x18\x01") + field(3, field(1, b"identity"))


def _folder(root: Path, name: str) -> Path:
    (root / name).mkdir(exist_ok=True)
    return root / name
