"""A loaded checkpoint becomes a .gguf for llama.cpp, and with it ollama and others. By the `gguf` package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptexport.checkpoints import Checkpoint
from gptexport.converters.converter import Gguf
from gptexport.converters.proof import check_finite
from gptexport.converters.registry import converter_of
from gptexport.errors import ExportError
from gptexport.staging import staged
from gptexport.tokenizers import BundledTokenizer, check_size
from gptexport.tokenizers.as_gguf import tokenizer_fields
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.contract.manifest import TextEntry

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # llama.cpp's names
BLOCK = 32  # weights that share a scale in Q8_0


@dataclass(frozen=True)
class Written:
    """What was written."""

    path: Path
    architecture: str  # as llama.cpp spells it
    bytes: int
    notes: tuple[str, ...]  # what a person should be told


def write_gguf(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: str = "float32",
    tokenizer: BundledTokenizer | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> Written:
    """Write NAME.gguf, and read every tensor again. Vectors stay float32, as llama.cpp wants them.

    Args:
        dtype: of TYPES: the matrices'.

    Raises:
        ExportError: llama.cpp does not compute this model, or what was written is not it.
        BackendUnavailableError: the gguf package is not installed.
        OutputExistsError, OutputError: it cannot be written there; nothing is left behind.
    """
    gguf = _import()
    model = converter_of(checkpoint).gguf(checkpoint.config, checkpoint.model.state_dict())
    check_size(tokenizer, checkpoint.vocab_size)
    check_finite(checkpoint, torch.float16 if TYPES[dtype] in ("F16", "Q8_0") else torch.float32)
    fields, notes = tokenizer_fields(tokenizer, checkpoint.vocab_size)
    with staged(out, force=False) as folder:
        progress(f"writing {out.name}, architecture {model.architecture}")
        path = folder / out.name
        tensors = {name: _stored(gguf, weight, dtype) for name, weight in model.weights.items()}
        writer = gguf.GGUFWriter(str(path), model.architecture)
        writer.add_file_type(getattr(gguf.LlamaFileType, _file_type(dtype)))
        _add_fields(writer, model, {**fields, **_ids(checkpoint.text, checkpoint.vocab_size)})
        for name, (values, kind) in tensors.items():
            writer.add_tensor(name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        progress("reading it again")
        _read_back(gguf, path, tensors)
        size = path.stat().st_size
    return Written(out, model.architecture, size, (*model.notes, *notes))


def _import() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise BackendUnavailableError("writing GGUF needs the gguf package: `pip install gguf`.") from error
    module: ModuleType = gguf
    return module


def _file_type(dtype: str) -> str:
    return "ALL_F32" if TYPES[dtype] == "F32" else f"MOSTLY_{TYPES[dtype]}"


def _stored(gguf: ModuleType, weight: torch.Tensor, dtype: str) -> tuple[NDArray[Any], Any]:
    """The numbers as the file has them, and their type."""
    values = weight.detach().float().numpy()
    name = TYPES[dtype]
    if values.ndim < 2:
        name = "F32"
    elif name == "Q8_0" and values.shape[-1] % BLOCK:
        name = "F16"
    kind = getattr(gguf.GGMLQuantizationType, name)
    return gguf.quants.quantize(np.ascontiguousarray(values), kind), kind


def _add_fields(writer: Any, model: Gguf, more: dict[str, Any]) -> None:
    for name, value in model.fields.items():
        key = f"{model.architecture}.{name}"
        match value:
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    for key, value in more.items():
        match value:
            case list():
                writer.add_array(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)


def _ids(text: TextEntry, vocab_size: int) -> dict[str, int]:
    ends = text.eos_token_ids[0] if text.eos_token_ids else None
    named = {"bos": text.bos_token_id, "eos": ends, "padding": text.pad_token_id}
    return {f"tokenizer.ggml.{name}_token_id": i for name, i in named.items() if i is not None and i < vocab_size}


def _read_back(gguf: ModuleType, path: Path, tensors: dict[str, tuple[NDArray[Any], Any]]) -> None:
    """Compare every tensor with what was to be written, to the bit.

    Raises:
        ExportError: one differs, or is not there.
    """
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    for name, (values, kind) in tensors.items():
        there = found.get(name)
        if there is None or there.tensor_type != kind or there.data.tobytes() != values.tobytes():
            raise ExportError(f"{name} is not what was written. The disk is at fault: write again, elsewhere.")
