"""A loaded checkpoint becomes a folder that transformers reads, and with it vLLM, llama.cpp's converter, and others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from gptexport.checkpoints import Checkpoint
from gptexport.converters.converter import Weights
from gptexport.converters.proof import Proof, check_finite, in_transformers, read_back
from gptexport.converters.registry import converter_of
from gptexport.errors import OutputError
from gptexport.precision import PRECISIONS
from gptexport.staging import staged, write_file
from gptexport.tokenizers import BundledTokenizer, check_size
from gptexport.tokenizers.as_json import tokenizer_files
from gptexport_runtime.contract.manifest import TextEntry


@dataclass(frozen=True)
class Converted:
    """What was written, and what shows that it is the same model."""

    path: Path
    class_name: str  # of transformers: "GPT2LMHeadModel"
    bytes: int  # of the weights
    noise_ratio: float | None  # of transformers' own class, to eager's noise; None: transformers is not installed
    notes: tuple[str, ...]  # what a person should be told


def convert(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: str = "float32",
    tokenizer: BundledTokenizer | None = None,
    beside: Path | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> Converted:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer; read all of it again.

    Args:
        out: a folder that is not there yet, or is empty.
        dtype: "float32", "float16" or "bfloat16", of the stored weights.
        beside: the folder that the tokenizer was found in: what it says of special tokens and chats goes with it.

    Raises:
        ExportError: no class of transformers computes this model, or what was written does not.
        OutputExistsError, OutputError: it cannot be written there; nothing is left behind.
    """
    converter = converter_of(checkpoint)
    precision = PRECISIONS[dtype]
    check_size(tokenizer, checkpoint.vocab_size)
    check_finite(checkpoint, precision.torch_dtype)
    fields = converter.fields(checkpoint.config)
    with staged(out, force=False) as folder:
        weights = converter.weights(checkpoint.config, checkpoint.model.state_dict())
        size = sum(weight.numel() for weight in weights.values()) * precision.bits // 8
        progress(f"writing {size / 1e6:,.0f} MB of weights")
        _save(weights, precision.torch_dtype, folder / "model.safetensors")
        ids, left_out = _ids(checkpoint.text, checkpoint.vocab_size)
        _write_json(folder / "config.json", {**fields, **ids, "dtype": dtype, "torch_dtype": dtype})
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
        files, notes = tokenizer_files(tokenizer, checkpoint.block_size, beside)
        for name, data in files.items():
            write_file(folder / name, data)
        # safetensors makes it for its owner alone
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
        progress("reading it again")
        again = read_back(folder, weights, precision.torch_dtype)
        proof = Proof(checkpoint, precision.torch_dtype, converter.window(checkpoint.config))
        proof.noise_ratio(again, "gptexport")
        if (theirs := in_transformers(folder)) is not None:
            progress(f"comparing with {theirs[1]}")
        ratio = proof.noise_ratio(*theirs) if theirs is not None else None
    if proof.unseen is not None:
        notes = (*notes, f"logits were compared on short texts: none is longer than its window of {proof.unseen}")
    return Converted(out, fields["architectures"][0], size, ratio, (*left_out, *notes))


def _save(weights: Weights, dtype: torch.dtype, path: Path) -> None:
    """One file; what shares memory in the module is stored once for each name."""
    try:
        stored = {name: weight.detach().to(dtype).contiguous().clone() for name, weight in weights.items()}
        safetensors.torch.save_file(stored, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OutputError(f"writing {path.name} failed: {error}. Nothing was left behind.") from error


def _ids(text: TextEntry, vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The special tokens' ids, and what a person should know of them.

    None is written too: a class's default may be no id of this model.
    """
    ends = [i for i in text.eos_token_ids if i < vocab_size]
    asked = {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id}
    found = {name: i if i is not None and i < vocab_size else None for name, i in asked.items()}
    lost = [i for i in (*text.eos_token_ids, *asked.values()) if i is not None and i >= vocab_size]
    notes = (f"the special ids {sorted({*lost})} are left out: the vocabulary ends at {vocab_size}",) if lost else ()
    return {**found, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}, notes


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())
