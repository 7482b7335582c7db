"""One step of the model, run again in float64 on the graph's own inputs, rightly or with something in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from gptexport.parity.locate.observe import AlignedValue, StopReplay, observed
from gptexport.parity.locate.replay import STEP_MAX_RATIO, STEP_RATIO, Replay, StepError, replaced, rms_of
from gptexport.parity.locate.suspect import Function
from gptexport.parity.measure.float64 import in_float64


@dataclass(frozen=True)
class Call:
    """A PyTorch function as the step calls it."""

    function: str  # its name
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Step:
    """From the last values that the graph holds, to the next."""

    def __init__(self, replay: Replay, end: AlignedValue, error: StepError) -> None:
        self._replay = replay
        self.end = end
        self.error = error
        self.actual = replay.actual[end.value]
        self._start = max((call for call in replay.alignment.values if call < end.call), default=-1)
        name, self._first = _scope(replay, self._start, end.call)
        self.module = replay.model.get_submodule(name)
        self._args, self._kwargs = self._arguments()
        # positions are made where the forward begins, before other values are known
        self._everywhere = self._start < 0 or not self.actual.is_floating_point()
        self.calls: list[Call] = []  # since the last value that the graph holds
        self.earlier: list[Call] = []  # before it in the same module, such as the SiLU of a gate
        self.expected = self.run(None, record=True)

    @property
    def skipped(self) -> torch.Tensor | None:
        """What the step would give if it were left out, where that has a meaning."""
        first = self._args[0] if self._args else None
        same = isinstance(first, torch.Tensor) and first.shape == self.expected.shape and first.is_floating_point()
        return first if same else None

    def run(self, swap: tuple[str, Function] | None, *, earlier: bool = False, record: bool = False) -> torch.Tensor:
        """What the step gives.

        Args:
            swap: the name of a function, and what to compute instead.
            earlier: swap it in all of the module, not since the last value that the graph holds alone.
            record: note the functions that are called.
        """
        mode = _Swapped(swap)
        mode.active = earlier or self._everywhere
        if record:
            mode.calls = self.calls if self._everywhere else self.earlier
        result: list[torch.Tensor] = []

        def observe(call: int, tensor: torch.Tensor) -> torch.Tensor | None:
            if call == self.end.call:
                result.append(tensor)
                raise StopReplay
            mode.active = mode.active or call >= self._start
            if record and mode.active:
                mode.calls = self.calls
            return replaced(self._replay, call, tensor)

        model = self._replay.model
        with torch.no_grad(), in_float64(model), observed(model, observe, self._first), mode:
            try:
                self.module(*self._args, **self._kwargs)
            except StopReplay:
                return result[0]
        raise AssertionError("the run ended before the step did")

    def left(self, made: torch.Tensor) -> float:
        """The error that is left, over the noise: a claim needs STEP_RATIO or less."""
        if made.shape != self.actual.shape:
            return np.inf
        error = self.actual.to(torch.float64) - made.to(torch.float64)
        if not error.isfinite().all():
            return np.inf
        peak = float(error.abs().max()) / self.error.noise_max * STEP_RATIO / STEP_MAX_RATIO
        return max(rms_of(error) / self.error.noise_rms, peak)

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the scope is called with: the ids, or what a run of the whole model gives it."""
        if self._first == 0:
            return (self._replay.ids,), {}
        seen = -1
        caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def observe(call: int, tensor: torch.Tensor) -> torch.Tensor | None:
            nonlocal seen
            seen = call
            return replaced(self._replay, call, tensor)

        def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if seen == self._first:
                caught.append((args, kwargs))
                raise StopReplay

        model = self._replay.model
        with torch.no_grad(), in_float64(model), observed(model, observe):
            hook = self.module.register_forward_pre_hook(catch, with_kwargs=True)
            try:
                model(self._replay.ids)
            except StopReplay:
                return caught[0]
            finally:
                hook.remove()
        raise AssertionError("the run did not enter the module")


def _scope(replay: Replay, start: int, end: int) -> tuple[str, int]:
    """The smallest module whose run holds the step, and the hook call at which it is entered."""
    open_modules: list[tuple[str, int]] = []
    best = ("", 0)
    for number, call in enumerate(replay.alignment.calls):
        if call.side == "in":
            if number <= end:
                open_modules.append((call.module, number))
            continue
        if number >= end:
            break
        open_modules.pop()
    for name, entered in open_modules:  # from the outermost in
        if entered <= start:
            best = (name, entered)
    return best


class _Swapped(TorchFunctionMode):
    """While open, one function is another."""

    def __init__(self, swap: tuple[str, Function] | None) -> None:
        super().__init__()
        self.active = False
        self.calls: list[Call] | None = None  # filled
        self._swap = swap

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.calls is not None:
            self.calls.append(Call(name, args, kwargs))
        if self.active and self._swap is not None and name == self._swap[0]:
            return self._swap[1](*args, **kwargs)
        return func(*args, **kwargs)
