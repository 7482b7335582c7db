"""llm.c's `.bin`: 256 int32 numbers of which eight are used, then GPT-2's weights one after another, layers together.

Version 3 holds float32, version 5 bfloat16, little-endian. The head is tied, GELU is tanh, biases are always there.
The vocabulary's rows are padded, to a multiple of 128 with zeros; the header says how many are real: those are kept.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import torch

from gptexport.architectures import gpt2
from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints.sizes import wrong_values_in
from gptexport.checkpoints.types import Stored
from gptexport.errors import CheckpointError
from gptexport_runtime.files import open_regular

FORMAT = "llm.c"
MAGIC = 20240326
HEADER = 256 * 4  # bytes
DTYPES = {3: torch.float32, 5: torch.bfloat16}
_FIELDS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "padded vocab_size")


def read(path: Path) -> Stored:
    """What a llm.c file says, its weights mapped.

    Raises:
        CheckpointError: its version is another, a size is impossible, or the file is longer or shorter than they ask.
    """
    version, config, padded = _header(path)
    dtype = DTYPES[version]
    shapes = list(_shapes(config, padded))
    count = sum(shape.numel() for _, shape in shapes)
    expected, size = HEADER + count * dtype.itemsize, path.stat().st_size
    if size != expected:
        raise CheckpointError(
            f"{path}: the file has {size:,} bytes, and its header asks for {expected:,} ({count:,} numbers in "
            f"{str(dtype).removeprefix('torch.')}). It is truncated or corrupt: copy it again."
        )
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[HEADER:].view(dtype)
    weights: dict[str, torch.Tensor] = {}
    start = 0
    for name, shape in shapes:
        weight = data[start : start + shape.numel()].view(shape)
        start += shape.numel()
        if "{layer}" in name:
            weights |= {name.format(layer=layer): weight[layer] for layer in range(config.n_layer)}
        else:
            weights[name] = weight
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][: config.vocab_size]
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return Stored(
        format=FORMAT,
        path=path,
        architecture=gpt2.ARCHITECTURE,
        config=config,
        assumed={"gelu": "format"},
        weights=weights,
        files=(path,),
    )


def _header(path: Path) -> tuple[int, GPTConfig, int]:
    """The version, the config, and how many rows the padded vocabulary has."""
    with open_regular(path) as file:
        head = file.read(HEADER)
    if len(head) < HEADER:
        raise CheckpointError(f"{path}: the file ({len(head)} bytes) is shorter than llm.c's header of {HEADER}.")
    _, version, *sizes = struct.unpack("<8i", head[:32])
    if version not in DTYPES:
        raise CheckpointError(
            f"{path}: version {version} of llm.c's format; gptexport reads 3 (float32) and 5 (bfloat16), whose "
            "vocabulary is padded. Write it again with llm.c's train_gpt2.py or train_gpt2cu of today."
        )
    named = dict(zip(_FIELDS, sizes, strict=True))
    padded = named.pop("padded vocab_size")
    with wrong_values_in(f"{path}: the header is corrupt"):
        config = GPTConfig(**named, gelu="tanh", tied=True, bias=True)
    if padded < config.vocab_size:
        raise CheckpointError(
            f"{path}: the header is corrupt: vocab_size {config.vocab_size} is padded to {padded}, which is less."
        )
    return version, config, padded


def _shapes(config: GPTConfig, padded: int) -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes in the order of the file; of a block's weights all layers are one tensor."""
    C, L = config.n_embd, config.n_layer
    block = "transformer.h.{layer}."
    yield "transformer.wte.weight", torch.Size((padded, C))
    yield "transformer.wpe.weight", torch.Size((config.block_size, C))
    for name, rows, columns in (
        ("ln_1", C, None),
        ("attn.c_attn", 3 * C, C),
        ("attn.c_proj", C, C),
        ("ln_2", C, None),
        ("mlp.c_fc", 4 * C, C),
        ("mlp.c_proj", C, 4 * C),
    ):
        yield f"{block}{name}.weight", torch.Size((L, rows) if columns is None else (L, rows, columns))
        yield f"{block}{name}.bias", torch.Size((L, rows))
    yield "transformer.ln_f.weight", torch.Size((C,))
    yield "transformer.ln_f.bias", torch.Size((C,))
