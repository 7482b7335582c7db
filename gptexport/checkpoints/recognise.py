"""Recognise what a path holds by its first bytes and, in a folder, by its files; names decide where content cannot.

Reads a few kilobytes, executes nothing. What is inside a .pt is told by `payload`, once it has been opened safely.
"""

import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Literal

from gptexport.checkpoints.formats import llmc
from gptexport.checkpoints.formats.huggingface_config import read_json
from gptexport.checkpoints.torch_file import LEGACY_MAGIC, corrupt
from gptexport.checkpoints.types import Foreign
from gptexport.errors import CheckpointError
from gptexport_runtime.files import open_regular

Container = Literal["huggingface", "litgpt", "llm.c", "torch"]
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

_LLMC = {  # llm.c's magic numbers, but for the model's
    20240327: ("llm.c-state", "llm.c's debug state, with gradients", "The model is gpt2_*.bin beside it"),
    20240520: ("llm.c-tokens", "a token file of llm.c", "It holds no model"),
    20240527: ("llm.c-state", "llm.c's optimizer state", "The model is model_*.bin beside it"),
    20240801: ("llm.c-tokens", "a token file of llm.c", "It holds no model"),
    20240803: ("llm.c-llama3", "a Llama 3 of llm.c", "Give the Hugging Face folder that it was written from"),
}
_TF_INDEX_FOOTER = struct.pack("<Q", 0xDB4775248B80FB57)  # LevelDB's table magic
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_BESIDE = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "training_args.bin")
_NO_MODEL = ("text", "json", "html", "empty", "unknown", "python", "zip", "pickle")
_OWN_CODE = "Export it through its own code: gptexport onnx module.py:factory"
_TO_HUGGING_FACE = "Convert it to a Hugging Face folder (transformers' save_pretrained) and give that folder"


def recognise(path: Path) -> Container | Foreign:
    """How to open the path, or what it is and where to convert it.

    Raises:
        CheckpointError: the path does not exist, cannot be read, or is a damaged zip archive.
    """
    try:
        return _recognise_folder(path) if path.is_dir() else _recognise_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _recognise_file(path: Path) -> Container | Foreign:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(4096)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if not head:
        return Foreign(format="empty", what="an empty file", advice="Copy or download it again")
    if head.startswith(b"PK"):
        return _recognise_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return "torch"
    return _by_magic(path, head, tail) or _by_text(path, head) or _unknown(path, head, size)


def _recognise_zip(path: Path) -> Container | Foreign:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            folders = {part for name in archive.namelist() for part in name.split("/")[:-1]}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise corrupt(path, error) from error
    if "constants.pkl" in names and "code" in folders:
        return Foreign(format="torchscript", what="a TorchScript archive, code with its weights", advice=_OWN_CODE)
    if "data.pkl" in names:
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return Foreign(format="npz", what="a NumPy .npz archive", advice=_OWN_CODE)
    return Foreign(format="zip", what="a zip archive that torch.save did not write", advice="Unpack it first")


def _by_magic(path: Path, head: bytes, tail: bytes) -> Container | Foreign | None:
    if found := _llmc(head):
        return found
    if head.startswith(b"GGUF"):
        return Foreign(
            format="gguf", what="a GGUF file of llama.cpp", advice="Give the checkpoint it was converted from"
        )
    if head.startswith(b"\x93NUMPY"):
        return Foreign(format="npy", what="a NumPy array, such as build-nanogpt's tokens", advice="It holds no model")
    if head.startswith(b"\x89HDF"):
        return Foreign(format="hdf5", what="an HDF5 file, such as TensorFlow's weights", advice=_TO_HUGGING_FACE)
    if head.startswith(b"ftrt"):
        return Foreign(format="tensorrt", what="a TensorRT engine, which is an export already")
    if tail == _TF_INDEX_FOOTER or path.name.startswith("model.ckpt"):
        return _openai()
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000:
        beside = path.with_name("config.json").is_file()
        advice = f"Give its folder, {path.parent}" if beside else "Give a folder that holds its config.json too"
        return Foreign(format="safetensors", what="safetensors alone, weights without a config", advice=advice)
    if head[0] == 0x08 and len(head) > 2 and head[1] < 0x40 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42):
        return Foreign(
            format="onnx", what="an ONNX model, which is an export already", advice="Give the checkpoint it came from"
        )
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        what = "a Python pickle that torch.save did not write, which only running the code it names can open"
        return Foreign(format="pickle", what=what, advice="Save the weights with torch.save where they were trained")
    return None


def _llmc(head: bytes) -> Container | Foreign | None:
    (magic,) = struct.unpack("<i", head[:4]) if len(head) >= 4 else (0,)
    if magic == llmc.MAGIC:
        return "llm.c"
    if magic not in _LLMC:
        return None
    name, what, advice = _LLMC[magic]
    return Foreign(format=name, what=what, advice=advice)


def _by_text(path: Path, head: bytes) -> Foreign | None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < 4096 or error.start < len(head) - 4:  # not merely a character cut at the end
            return None
        text = head[: error.start].decode("utf-8")
    if not all(c.isprintable() or c in "\t\r\n\f" for c in text):
        return None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return Foreign(format="git-lfs", what="a Git LFS pointer, not the file itself", advice="Fetch it: git lfs pull")
    if text.lstrip().lower().startswith(("<!doctype", "<html")):
        return Foreign(format="html", what="a web page, a failed download perhaps", advice="Download the file again")
    if path.suffix == ".py":
        return Foreign(format="python", what="Python source", advice=f"Name what makes the model: {path}:factory")
    if path.name == "config.json" or path.name.endswith(".index.json"):
        return Foreign(
            format="json", what="one file of a Hugging Face checkpoint", advice=f"Give its folder, {path.parent}"
        )
    return Foreign(
        format="text", what="a text file", advice="Give a checkpoint: nanoGPT's ckpt.pt, a Hugging Face folder"
    )


def _unknown(path: Path, head: bytes, size: int) -> Foreign:
    what = f"nothing that gptexport recognises ({size:,} bytes that begin with {head[:8].hex(' ')})"
    advice = "docs/limits.md lists what it reads; anything else can be exported as module.py:factory"
    return Foreign(format="unknown", what=what, advice=advice)


def _recognise_folder(folder: Path) -> Container | Foreign:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return Foreign(format="empty", what="a folder without anything in it")
    if {"lit_model.pth", "model_config.yaml"} <= set(names):
        return "litgpt"  # which keeps a config.json for others
    if "config.json" in names and any(_is_weights(name) for name in names):
        read_json(folder / "config.json")
        return "huggingface"  # whatever else lies beside it: an adapter, a bundle, another format's weights
    if "gptexport.json" in names:
        return Foreign(
            format="bundle", what="a bundle, which is an export already", advice="Give the checkpoint it came from"
        )
    if any(name in names for name in ADAPTERS):
        advice = "Merge it into its base model (peft's merge_and_unload), save_pretrained, and give that folder"
        return Foreign(format="adapter", what="a LoRA or other adapter, not a whole model", advice=advice)
    if "lit_model.pth" in names:
        return "litgpt"
    if "config.json" in names:
        read_json(folder / "config.json")
        return "huggingface"
    if "hparams.json" in names or any(name.startswith("model.ckpt") for name in names):
        return _openai()
    if inner := [name for name in names if (folder / name / "config.json").is_file()]:
        what = "a folder of Hugging Face checkpoints"
        return Foreign(format="folder", what=what, advice=f"Give one of them: {_listed(folder, inner)}")
    return _recognise_files(folder, names)


def only_checkpoint(folder: Path) -> Path | None:
    """The one file of a training folder that is read by itself, a lone ckpt.pt say. None: there are more, or none."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (*_BESIDE, *ADAPTERS)]
    found = [path for path in files if not isinstance(recognise(path), Foreign)]
    return found[0] if len(found) == 1 else None


def _recognise_files(folder: Path, names: list[str]) -> Foreign:
    """What the files of a folder are, each alone, where the folder as such is no format's."""
    if files := [name for name in names if name.endswith(_TORCH_SUFFIXES)]:
        return Foreign(format="folder", what="a training folder", advice=f"Give the file: {_listed(folder, files)}")
    if any(name.endswith(".safetensors") for name in names):
        return Foreign(format="safetensors", what="safetensors without a config.json", advice="Add the config.json")
    kinds = {name: recognise(folder / name) for name in names if (folder / name).is_file()}
    named = {name: kind for name, kind in kinds.items() if isinstance(kind, Foreign) and kind.format not in _NO_MODEL}
    if readable := {name: kind for name, kind in kinds.items() if not isinstance(kind, Foreign)}:
        found = ", ".join(f"{name} ({kind})" for name, kind in readable.items())
        advice = f"Give the file: {_listed(folder, list(readable))}"
        return Foreign(format=next(iter(readable.values())), what=f"a folder with {found}", advice=advice)
    if len(named) == 1:
        (name, kind), *_ = named.items()
        return Foreign(format=kind.format, what=f"a folder with {kind.what}: {name}", advice=kind.advice)
    return Foreign(format="unknown", what=f"a folder with no checkpoint in it (it holds {', '.join(names[:10])})")


def _is_weights(name: str) -> bool:
    return name not in ADAPTERS and re.fullmatch(r".*\.safetensors|pytorch_model.*\.bin", name) is not None


def _listed(folder: Path, names: list[str]) -> str:
    return ", ".join(str(folder / name) for name in names)


def _openai() -> Foreign:
    advice = "The same weights as a Hugging Face folder are at openai-community/gpt2; others: transformers 4's "
    advice += "convert_gpt2_original_tf_checkpoint_to_pytorch.py"
    return Foreign(format="openai-tf", what="OpenAI's TensorFlow checkpoint of GPT-2", advice=advice)
