"""Sizes and numbers of a model: from its config, from the shapes of its weights, or asked for."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gptexport.checkpoints.types import AssumptionSource
from gptexport.errors import CheckpointError
from gptexport_runtime.contract.model import LARGEST
from gptexport_runtime.errors import shown


class MissingChoiceError(CheckpointError):
    """A checkpoint is readable once somebody says what its file does not."""

    def __init__(self, path: Path, name: str, what: str) -> None:
        self.name = name  # of the parameter to be passed
        super().__init__(f"{path}: {what}: pass {name}")


GPT2_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25}  # by width, of the models that OpenAI trained


@contextmanager
def wrong_values_in(where: object) -> Iterator[None]:
    """Around the making of a config: what it refuses with a ValueError is a CheckpointError that names `where`."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}.") from error


def positive_integer(value: Any, name: str, path: Path) -> int:
    """Raises CheckpointError where it is none; the field is named."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise CheckpointError(f"{path}: {name} is {shown(value)}; expected a positive integer, at most {LARGEST:,}.")
    return value


def positive_number(value: Any, name: str, path: Path) -> float:
    """Raises CheckpointError where it is none; the field is named."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"{path}: {name} is {shown(value)}; expected a positive number.")
    return float(value)


def shape_of(weights: Mapping[str, torch.Tensor], name: str, path: Path, *, dims: int) -> tuple[int, ...]:
    """The shape of a weight from which sizes are to follow.

    Raises:
        CheckpointError: it is missing, or has another number of axes.
    """
    weight = weights.get(name)
    if weight is None:
        some = ", ".join(list(weights)[:4]) or "nothing"
        raise CheckpointError(f"{path}: {name} is missing, from which the model's sizes follow (it holds {some}, ...).")
    if weight.ndim != dims:
        raise CheckpointError(f"{path}: {name} has the shape {tuple(weight.shape)}; expected {dims} axes.")
    return tuple(weight.shape)


def layers_in(weights: Mapping[str, torch.Tensor], block: str, path: Path) -> int:
    """How many blocks there are: one more than the highest index after `block`, such as `layers.{layer}.`.

    Raises:
        CheckpointError: there is none.
    """
    pattern = re.compile(re.escape(block).replace(r"\{layer\}", r"(\d{1,6})"))
    found = [int(match.group(1)) for name in weights if (match := pattern.match(name))]
    if not found:
        raise CheckpointError(f"{path}: no weight is called {block.format(layer=0)}*: there is no block.")
    return max(found) + 1


def heads_of_gpt2(n_embd: int, asked: int | None, path: Path) -> tuple[int, AssumptionSource]:
    """n_head of a GPT-2 whose file does not say, and who says it.

    Raises:
        CheckpointError: nobody does.
    """
    if asked is not None:
        return asked, "option"
    if n_embd in GPT2_HEADS:
        return GPT2_HEADS[n_embd], "format"
    raise missing_heads(path, n_embd)


def note_of_heads(n_head: int, told: AssumptionSource) -> tuple[str, ...]:
    """What a person should know where n_head was taken from the width alone."""
    if told != "format":
        return ()
    return (f"n_head taken as {n_head}, as in the models of this width: the file does not say. If not: --n-head",)


def missing_heads(path: Path, n_embd: int) -> MissingChoiceError:
    what = f"the weights (n_embd {n_embd}) do not say how many heads the attention has"
    return MissingChoiceError(path, "n_head", what)
