"""Weights against config, all or nothing: all that differs is one error that lists it; what fits becomes the model."""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from gptexport.checkpoints.types import Stored
from gptexport.config import GPTConfig
from gptexport.errors import CheckpointError
from gptexport.models.gpt2 import GPT

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HEAD, _WTE = "lm_head.weight", "transformer.wte.weight"
_BLOCK = re.compile(r"transformer\.h\.(\d+)\.")


def problems_of(stored: Stored) -> tuple[str, ...]:
    """Every difference between the stored weights and those that the config calls for, one line each."""
    weights, config = stored.weights, stored.config
    blocks = {int(found.group(1)) for name in weights if (found := _BLOCK.match(name))}
    absent = [layer for layer in range(min(config.n_layer, max(blocks, default=-1) + 1)) if layer not in blocks]
    last = max(blocks, default=-1) + 1
    problems = [f"missing       transformer.h.{layer}.*: the whole block" for layer in absent]
    if config.n_layer > last:  # not one by one: a damaged n_layer may be any number
        problems.append(
            f"missing       transformer.h.{last}.* to transformer.h.{config.n_layer - 1}.*: {config.n_layer - last} "
            f"whole blocks (n_layer is {config.n_layer}, the highest block stored is {last - 1})"
        )
    expected = expected_shapes(replace(config, n_layer=max(1, min(config.n_layer, last))))
    whole = {f"transformer.h.{layer}." for layer in range(max(1, last)) if layer not in blocks}
    for name, shape in expected.items():
        if name not in weights and not any(name.startswith(block) for block in whole):
            problems.append(f"missing       {name} {_shape(shape)}")
    for name, weight in weights.items():
        if name not in expected:
            problems.append(f"unexpected    {name} {_shape(weight.shape)} {dtype_name(weight)}")
            continue
        if tuple(weight.shape) != expected[name]:
            problems.append(f"mis-shaped    {name}: got {_shape(weight.shape)}, expected {_shape(expected[name])}")
        if weight.dtype not in FLOATS:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            problems.append(f"wrong dtype   {name}: got {dtype_name(weight)}, expected one of {allowed}")
    return (*stored.problems, *problems)


def expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the model, lm_head also where it is tied, with its shape."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in GPT(config).state_dict().items()}


def check_weights(stored: Stored) -> None:
    """All weights are there, nothing else is, and every one has the right shape and is a float.

    Raises:
        CheckpointError: otherwise; everything that differs is listed.
    """
    if not (problems := problems_of(stored)):
        return
    c = stored.config
    sizes = f"n_layer {c.n_layer}, n_head {c.n_head}, n_embd {c.n_embd}, block_size {c.block_size}"
    raise CheckpointError(
        f"{stored.path}: the weights are not those of its config ({sizes}, vocab_size {c.vocab_size}, bias {c.bias}):\n"
        + "\n".join(f"  {problem}" for problem in problems)
        + "\nThe checkpoint is incomplete, or its architecture is not GPT-2's; in that case export it through its own "
        "code: gptexport onnx module.py:factory"
    )


def assemble(config: GPTConfig, weights: Mapping[str, torch.Tensor]) -> GPT:
    """GPT(config) in eval mode around weights that were checked: the very tensors of the file where they are float32.

    Others are cast one by one. A config with a smaller vocabulary or context keeps the first rows of wte, lm_head and
    wpe, as views.
    """
    rows = {_WTE: config.vocab_size, _HEAD: config.vocab_size, "transformer.wpe.weight": config.block_size}
    cut = {name: weight.detach()[: rows.get(name)] for name, weight in weights.items()}
    if config.tied:
        cut.pop(_HEAD)  # so that it is not cast a second time
    floats = {name: weight.to(torch.float32) for name, weight in cut.items()}
    floats.setdefault(_HEAD, floats[_WTE])
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(floats, strict=True, assign=True)
    model.tie_weights()
    return model.requires_grad_(False).eval()


def dtype_name(weight: torch.Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _shape(shape: tuple[int, ...]) -> str:
    return str(tuple(shape))
