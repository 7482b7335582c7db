"""Run a model while somebody watches, and may replace, what goes into and comes out of each of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn

from gptexport.parity.sites import Site

Side = Literal["in", "out"]
Visit = Callable[[int, torch.Tensor], torch.Tensor | None]  # event number, tensor -> what to go on with, None: as it is


@dataclass(frozen=True)
class Event:
    """One tensor passing a module's door. The same model on the same ids has the same events in the same order."""

    module: str  # "" is the model itself
    side: Side


@dataclass(frozen=True, kw_only=True)
class Place:
    """A value that the graph holds and eager computes too, at the first event where it can be seen."""

    value: str  # in the graph
    event: int
    module: str
    side: Side
    shape: tuple[int, ...]  # in eager


@dataclass(frozen=True)
class Itinerary:
    """The events of one run, and which value of the graph passes at which."""

    events: list[Event]
    values: dict[int, str]  # of every event where one is known
    places: list[Place]  # each value once, in order


class Stop(Exception):
    """Raised by a visit to end the run where it is."""


@contextmanager
def watched(model: nn.Module, visit: Visit, first: int = 0) -> Iterator[None]:
    """While open, `visit` sees every event of `model`, numbered from `first`."""
    counter = first

    def count() -> int:
        nonlocal counter
        counter += 1
        return counter - 1

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        event = count()
        if not args or not isinstance(args[0], torch.Tensor):
            return None
        other = visit(event, args[0])
        return None if other is None else (other, *args[1:])

    def after(_module: nn.Module, _args: object, output: Any) -> Any:
        event = count()
        return visit(event, output) if isinstance(output, torch.Tensor) else None

    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def plan(model: nn.Module, ids: torch.Tensor, sites: dict[str, Site]) -> Itinerary:
    """Run once to learn the order of events, and which tensor is which value of the graph."""
    events = list(_events(model, ids))
    named: dict[int, str] = {}  # id of a tensor -> the first value of the graph that it is
    at: dict[int, str] = {}
    for number, (event, tensor) in enumerate(events):
        site = sites.get(event.module)
        value = (site.input if event.side == "in" else site.output) if site else None
        if value is not None and tensor is not None:
            at[number] = value
            named.setdefault(id(tensor), value)
    places: dict[tuple[str, int], Place] = {}  # a value that stands for two tensors of eager's is wrong in one of them
    for number, (event, tensor) in enumerate(events):
        if tensor is None:
            continue
        value = at.get(number) or named.get(id(tensor))
        if value is None:
            continue
        at[number] = value
        shape = tuple(tensor.shape)
        place = Place(value=value, event=number, module=event.module, side=event.side, shape=shape)
        places.setdefault((value, id(tensor)), place)
    return Itinerary([event for event, _ in events], at, sorted(places.values(), key=lambda place: place.event))


def _events(model: nn.Module, ids: torch.Tensor) -> Iterator[tuple[Event, torch.Tensor | None]]:
    found: list[tuple[Event, torch.Tensor | None]] = []  # keeps the tensors, so that no id is used twice
    hooks = []
    for name, module in model.named_modules():

        def before(_module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            found.append((Event(name, "in"), args[0] if args and isinstance(args[0], torch.Tensor) else None))

        def after(_module: nn.Module, _args: object, output: Any, name: str = name) -> None:
            found.append((Event(name, "out"), output if isinstance(output, torch.Tensor) else None))

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    yield from found
