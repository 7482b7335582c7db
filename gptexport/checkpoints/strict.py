"""Weights against config, all or nothing: all that differs is one error that lists it; what fits becomes the model."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn

from gptexport.architectures import Architecture
from gptexport.checkpoints.types import Stored
from gptexport.errors import CheckpointError

MOST_BLOCKS = 2048
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def problems_of(stored: Stored) -> tuple[str, ...]:
    """Every difference between the stored weights and those that the config calls for, one line each."""
    weights = stored.weights
    expected, problems = _expected(stored)
    for name, shape in expected.items():
        if name not in weights:
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


def _expected(stored: Stored) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The weights that the config calls for, less those of blocks that are missing whole; and these, a line each.

    Not one by one: a damaged n_layer may be any number, and no model of so many blocks is to be built.
    """
    config, block = stored.config, stored.architecture.block
    if block is None:
        return expected_shapes(stored.architecture, config), []
    pattern = re.compile(re.escape(block).replace(r"\{layer\}", r"(\d{1,9})(?!\d)"))
    numbers = {int(found.group(1)) for name in stored.weights if (found := pattern.match(name))}
    blocks = {number for number in numbers if number < len(stored.weights)}  # others are no block of a whole model
    last = max(blocks, default=-1) + 1
    if last > MOST_BLOCKS:
        raise CheckpointError(f"{stored.path}: it has {last:,} blocks; gptexport builds no model of so many.")
    absent = [layer for layer in range(min(config.n_layer, last)) if layer not in blocks]
    problems = [f"missing       {block.format(layer=layer)}*: the whole block" for layer in absent]
    if config.n_layer > last:
        problems.append(
            f"missing       {block.format(layer=last)}* to {block.format(layer=config.n_layer - 1)}*: "
            f"{config.n_layer - last} whole blocks (n_layer is {config.n_layer}, the highest block stored is "
            f"{last - 1})"
        )
    whole = {block.format(layer=layer) for layer in range(max(1, last)) if layer not in blocks}
    shapes = expected_shapes(stored.architecture, replace(config, n_layer=max(1, min(config.n_layer, last))))
    there = {name: shape for name, shape in shapes.items() if not any(name.startswith(prefix) for prefix in whole)}
    return there, problems


def expected_shapes(architecture: Architecture, config: Any) -> dict[str, tuple[int, ...]]:
    """Every weight of the model, the LM head also where it is tied, with its shape.

    Raises:
        CheckpointError: no tensor can be as large as the config says.
    """
    try:
        with torch.device("meta"):
            return {name: tuple(weight.shape) for name, weight in architecture.model(config).state_dict().items()}
    except (RuntimeError, OverflowError) as error:  # more elements than 63 bits count
        said = str(error).partition("\n")[0]
        raise CheckpointError(f"the config is of no model that could be: {said}. It is damaged.") from error


def check_weights(stored: Stored) -> None:
    """All weights are there, nothing else is, and every one has the right shape and is a float.

    Raises:
        CheckpointError: otherwise; everything that differs is listed.
    """
    if not (problems := problems_of(stored)):
        return
    said = ", ".join(f"{name} {value}" for name, value in stored.config.to_dict().items() if isinstance(value, int))
    raise CheckpointError(
        f"{stored.path}: the weights are not those of its config ({said}):\n"
        + "\n".join(f"  {problem}" for problem in problems)
        + f"\nThe checkpoint is incomplete, or its architecture is not {stored.architecture.title}'s; in that case "
        "export it through its own code: `gptexport onnx module.py:factory`."
    )


def assemble(architecture: Architecture, config: Any, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model in eval mode around weights that were checked: the very tensors of the file where they are float32.

    Others are cast one by one. A config with a smaller vocabulary or context keeps the first rows of the weights that
    depend on it, as views. A tied LM head is the embedding's own tensor.
    """
    rows = {name: getattr(config, size) for name, size in architecture.cut_rows.items()}
    floats: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if config.tied and name == architecture.head:
            continue  # so that it is not cast a second time
        kept = rows.get(re.sub(r"\.\d+\.", ".{layer}.", name), rows.get(name))
        floats[name] = weight.detach()[:kept].to(torch.float32)
    with torch.device("meta"):
        model = architecture.model(config)
    if config.tied and architecture.head is not None and architecture.embedding is not None:
        floats.setdefault(architecture.head, floats[architecture.embedding])
    model.load_state_dict(floats, strict=True, assign=True)
    if config.tied and architecture.head is not None and architecture.embedding is not None:
        _share(model, architecture.head, architecture.embedding)
    for name, buffer in (architecture.buffers(config) if architecture.buffers is not None else {}).items():
        model.register_buffer(name, buffer, persistent=False)
    return model.requires_grad_(False).eval()


def _share(model: nn.Module, name: str, other: str) -> None:
    """Make two parameters one again: load_state_dict(assign=True) gave each a Parameter of its own."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, model.get_parameter(other))


def dtype_name(weight: torch.Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _shape(shape: tuple[int, ...]) -> str:
    return str(tuple(shape))
