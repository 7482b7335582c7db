"""Run a model and see, or replace, the tensor that goes into and comes out of each of its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn

from gptexport.parity.locate.align import Boundary
from gptexport.parity.measure.float64 import uncompiled

Side = Literal["in", "out"]
Observe = Callable[[int, torch.Tensor], torch.Tensor | None]  # hook call, tensor -> what to go on with; None: as it is


@dataclass(frozen=True)
class HookCall:
    """A tensor goes into a module, or comes out. The same model on the same ids makes the same calls in this order."""

    module: str  # "" is the model itself
    side: Side


@dataclass(frozen=True, kw_only=True)
class AlignedValue:
    """A value that the graph holds and eager computes too, at the first hook call where it is seen."""

    value: str  # in the graph
    call: int
    module: str
    side: Side
    shape: tuple[int, ...]  # in eager


@dataclass(frozen=True)
class Alignment:
    """The hook calls of one run, and which value of the graph is seen at which."""

    calls: list[HookCall]
    values: dict[int, str]  # of every call where one is known
    aligned: list[AlignedValue]  # each value once, in order


class StopReplay(Exception):
    """Raised by an observer to end the run where it is."""


@contextmanager
def observed(model: nn.Module, observe: Observe, first: int = 0) -> Iterator[None]:
    """While open, `observe` gets the tensor of every hook call of `model`, numbered from `first`."""
    counter = first

    def count() -> int:
        nonlocal counter
        counter += 1
        return counter - 1

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = count()
        if not args or not isinstance(args[0], torch.Tensor):
            return None
        other = observe(call, args[0])
        return None if other is None else (other, *args[1:])

    def after(_module: nn.Module, _args: object, output: Any) -> Any:
        call = count()
        return observe(call, output) if isinstance(output, torch.Tensor) else None

    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def align_calls(model: nn.Module, ids: torch.Tensor, boundaries: dict[str, Boundary]) -> Alignment:
    """Run once to learn the order of the hook calls, and which tensor is which value of the graph."""
    seen = list(_hook_calls(model, ids))
    calls = Counter(call for call, _ in seen)
    named: dict[int, str] = {}  # id of a tensor -> the first value of the graph that it is
    values: dict[int, str] = {}
    for number, (call, tensor) in enumerate(seen):
        boundary = boundaries.get(call.module) if calls[call] == 1 else None  # of which call would it be?
        value = (boundary.input if call.side == "in" else boundary.output) if boundary else None
        if value is not None and tensor is not None:
            values[number] = value
            named.setdefault(id(tensor), value)
    # a value that stands for two of eager's tensors is wrong in one of them
    aligned: dict[tuple[str, int], AlignedValue] = {}
    for number, (call, tensor) in enumerate(seen):
        if tensor is None:
            continue
        value = values.get(number) or named.get(id(tensor))
        if value is None:
            continue
        values[number] = value
        found = AlignedValue(value=value, call=number, module=call.module, side=call.side, shape=tuple(tensor.shape))
        aligned.setdefault((value, id(tensor)), found)
    return Alignment([call for call, _ in seen], values, sorted(aligned.values(), key=lambda found: found.call))


def _hook_calls(model: nn.Module, ids: torch.Tensor) -> Iterator[tuple[HookCall, torch.Tensor | None]]:
    found: list[tuple[HookCall, torch.Tensor | None]] = []  # keeps the tensors, so that no id is used twice
    hooks = []
    for name, module in model.named_modules():

        def before(_module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            found.append((HookCall(name, "in"), args[0] if args and isinstance(args[0], torch.Tensor) else None))

        def after(_module: nn.Module, _args: object, output: Any, name: str = name) -> None:
            found.append((HookCall(name, "out"), output if isinstance(output, torch.Tensor) else None))

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad(), uncompiled():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    yield from found


def record_calls(model: nn.Module, ids: torch.Tensor, wanted: Collection[HookCall]) -> dict[HookCall, torch.Tensor]:
    """The tensors that are seen at some hook calls of one run; of modules that are called once."""
    found: dict[HookCall, list[torch.Tensor | None]] = {}
    for call, tensor in _hook_calls(model, ids):
        if call in wanted:
            found.setdefault(call, []).append(tensor)
    return {call: seen[0].cpu() for call, seen in found.items() if len(seen) == 1 and seen[0] is not None}
