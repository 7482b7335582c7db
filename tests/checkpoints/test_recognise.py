"""What is named but not read: it says what it is and where to convert it, in load_checkpoint and in inspect."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from gptexport.checkpoints import describe_checkpoint, load_checkpoint, recognise
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.builders import tiny_huggingface, tiny_nanogpt


def raw(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


def saved(payload: object) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        torch.save(payload, path)
        return path

    return write


def folder(**files: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.mkdir()
        for name, data in files.items():
            (path / name.replace("__", ".")).write_bytes(data)
        return path

    return write


def llmc(magic: int) -> bytes:
    return struct.pack("<256i", magic, 5, 1024, 50257, 12, 12, 768, 50304, *[0] * 248) + b"\0" * 64


def safetensors_alone(path: Path) -> Path:
    save_file({"wte.weight": torch.zeros(3, 3)}, path)
    return path


def onnx_model(path: Path) -> Path:
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), path)
    return path


def torchscript(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"):
            archive.writestr(name, b"x")
    return path


def npz(path: Path) -> Path:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    return path


def bare_hf_weights(path: Path) -> Path:
    hf = tiny_huggingface(path, safetensors=False)
    return hf / "pytorch_model.bin"


ZERO = torch.zeros(2, 2)
MODDED = {"step": 5, "code": "import os", "model": {"_orig_mod.blocks.0.attn.qkv_w": ZERO}, "optimizers": []}
BERT = {"bert.encoder.layer.0.attention.self.query.weight": ZERO}
METAS_LLAMA = {"tok_embeddings.weight": ZERO, "layers.0.attention.wq.weight": ZERO}
TF_INDEX = b"\0" * 100 + struct.pack("<Q", 0xDB4775248B80FB57)

NAMED = [
    ("llm.c-state", raw(llmc(20240327)), "debug state"),
    ("llm.c-state", raw(llmc(20240527)), "optimizer state"),
    ("llm.c-llama3", raw(llmc(20240803)), "a Llama 3 of llm.c"),
    ("llm.c-tokens", raw(llmc(20240801)), "token file"),
    ("llm.c-tokens", raw(llmc(20240520)), "token file"),
    ("optimizer", saved({"state": {}, "param_groups": []}), "an optimizer's state"),
    ("modded-nanogpt", saved(MODDED), "modded-nanogpt"),
    ("openai-tf", folder(hparams__json=b"{}", checkpoint=b"x"), "TensorFlow.*openai-community/gpt2"),
    ("openai-tf", raw(TF_INDEX), "TensorFlow"),
    ("gguf", raw(b"GGUF\3\0\0\0" + b"\0" * 40), "GGUF"),
    ("onnx", onnx_model, "ONNX"),
    ("tensorrt", raw(b"ftrt" + b"\0" * 40), "TensorRT"),
    ("safetensors", safetensors_alone, "safetensors alone.*config.json"),
    ("safetensors", folder(model__safetensors=b"x"), "without a config.json"),
    ("state-dict", bare_hf_weights, "Give the folder with its config.json"),
    ("state-dict", saved(BERT), r"gptexport does not know \(bert\.encoder.*module\.py:factory"),
    ("state-dict", saved(METAS_LLAMA), r"gptexport does not know \(tok_embeddings"),
    ("adapter", folder(adapter_config__json=b"{}", adapter_model__safetensors=b"x"), "LoRA.*merge_and_unload"),
    ("folder", folder(ckpt__pt=b"x"), r"training folder.*Give the file: .*ckpt\.pt"),
    ("bundle", folder(gptexport__json=b"{}"), "bundle"),
    ("empty", raw(b""), "empty file"),
    ("empty", folder(), "without anything"),
    ("unknown", folder(notes__txt=b"x"), r"no checkpoint in it \(it holds notes\.txt\)"),
    ("text", raw("naïve text\n".encode() * 600), "text file"),
    ("git-lfs", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    ("html", raw(b"<!DOCTYPE html><html>"), "web page"),
    ("torchscript", torchscript, "TorchScript"),
    ("npz", npz, r"\.npz"),
    ("npy", raw(b"\x93NUMPY\1\0" + b" " * 40), "NumPy array"),
    ("hdf5", raw(b"\x89HDF\r\n\x1a\n" + b"\0" * 40), "HDF5"),
    ("unknown", raw(np.arange(5000, dtype=np.uint16).tobytes()), "nothing that gptexport recognises"),
    ("unknown", saved([1, 2]), "a saved list"),
    ("unknown", saved({"epoch": 1, "weights": {}}), "keys: epoch, weights"),
]


@pytest.mark.parametrize(
    ("name", "make", "message"), NAMED, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(NAMED)]
)
def test_it_is_named_and_not_read(tmp_path: Path, name: str, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "thing")
    with pytest.raises(UnknownCheckpointError, match=message):
        load_checkpoint(str(path))
    info = describe_checkpoint(str(path))
    assert (info.format, info.readable, info.config) == (name, False, None)
    assert info.description


def test_names_that_only_a_file_name_tells(tmp_path: Path) -> None:
    for name, format in [
        ("model.ckpt.data-00000-of-00001", "openai-tf"),
        ("train.py", "python"),
        ("config.json", "json"),
    ]:
        path = tmp_path / name
        path.write_bytes(b"\xff\xfe\x01\x02" if name.startswith("model") else b"{}")
        assert describe_checkpoint(str(path)).format == format


def test_a_folder_of_checkpoints_names_them(tmp_path: Path) -> None:
    tiny_huggingface(tmp_path / "checkpoint-500")
    with pytest.raises(UnknownCheckpointError, match=r"Give one of them: .*checkpoint-500"):
        load_checkpoint(str(tmp_path))


def test_another_model_type_is_described(tmp_path: Path) -> None:
    path = tmp_path / "mamba"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "mamba"}')
    info = describe_checkpoint(str(path))
    assert not info.readable and "model_type 'mamba'" in info.description


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_nanogpt(tmp_path / "ckpt.pt")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(recognise, "open_regular", refuse)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(str(path))


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    """What a lone file would be recognised as, its folder is too."""
    path = tiny_nanogpt(tmp_path / "ckpt.pt")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    (tmp_path / "log.txt").write_text("step 1")
    assert load_checkpoint(str(tmp_path)).sha256 == load_checkpoint(str(path)).sha256
    assert describe_checkpoint(str(tmp_path)).format == "nanogpt"
    tiny_nanogpt(tmp_path / "older.pt")
    with pytest.raises(UnknownCheckpointError, match=r"training folder.*ckpt\.pt.*older\.pt"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(("data", "format"), [(b"GGUF\3\0\0\0" + b"\0" * 40, "gguf"), (TF_INDEX, "openai-tf")])
def test_a_folder_with_one_file_of_another_format_says_which(tmp_path: Path, data: bytes, format: str) -> None:
    (tmp_path / "model.xyz").write_bytes(data)
    (tmp_path / "README.md").write_text("a model")
    info = describe_checkpoint(str(tmp_path))
    assert info.format == format and "model.xyz" in info.description
