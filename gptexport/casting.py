"""A model in another dtype, without changing what it computes: the one place that casts somebody's module."""

from __future__ import annotations

import torch
import torch.nn as nn


class Cast:
    """The same module, with its weights in another dtype while this is open.

    It is cast in place and put back, not copied: what a forward reaches by other ways than its submodules (a lambda, as
    in minGPT, a hook, a global list) `copy.deepcopy` leaves in the old dtype, without an error.

    `nn.Module.to(dtype)` casts whatever is a float, and a complex buffer too, whose imaginary part is then gone. Here
    every floating-point parameter is cast, and of the buffers only those in the dtype that the parameters had: a
    float64 table, a float32 table of a 16-bit model and anything complex keep theirs. To a narrower dtype a buffer
    follows only if the forward does not run without: the angles of a rotary embedding in bfloat16 are wrong by degrees.

    It may be opened more than once; the cast weights are kept. What is put into a Parameter while it is open goes with
    it: int8's smoothing does that.

    Args:
        model: `forward(idx (B,T) int64)`; run once, where a buffer may or may not follow.
        dtype: a floating-point dtype.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        # tensors are keys by identity, and kept alive so that it stays theirs
        self._there: dict[torch.Tensor, torch.Tensor] | None = None
        self._back: dict[torch.Tensor, torch.Tensor] = {}
        self._depth = 0

    def __enter__(self) -> nn.Module:
        if self._depth == 0:
            if self._there is None:
                self._first()
            else:
                _exchange(self._model, self._there)
        self._depth += 1
        return self._model

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            _exchange(self._model, self._back)

    def keep(self) -> None:
        """Stay open for good: the model is in the dtype from now on."""
        self.__enter__()

    def _first(self) -> None:
        before = floating_dtypes(self._model)
        narrows = any(torch.finfo(self._dtype).bits < torch.finfo(own).bits for own in before)
        follow = {buffer.dtype for buffer in self._model.buffers()} & before - {self._dtype}
        self._there = {}
        try:
            self._cast(set() if narrows else follow)
            if narrows and follow and not _runs(self._model):
                self._cast(follow)
        except BaseException:
            _exchange(self._model, self._back)
            raise

    def _cast(self, buffers: set[torch.dtype]) -> None:
        """Parameters to the dtype, and buffers that are in one of these; what shares memory goes on sharing it."""
        there, shared = self._there, dict[tuple[object, ...], torch.Tensor]()
        assert there is not None

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            # _apply also gives the plain tensors of modules that override it to move them: they are like buffers
            parameter = isinstance(tensor, nn.Parameter)
            if tensor in there:
                return there[tensor]
            follows = tensor.is_floating_point() if parameter else tensor.dtype in buffers
            if not follows or tensor.dtype == self._dtype:
                if parameter:
                    self._back.setdefault(tensor, tensor.detach())
                return tensor
            made = shared.setdefault(_memory(tensor), tensor.detach().to(self._dtype))
            there[tensor] = made
            self._back[tensor if parameter else made] = tensor.detach() if parameter else tensor
            return made

        self._model._apply(cast)  # what nn.Module.to is made of


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model in place, for good; see `Cast`."""
    Cast(model, dtype).keep()


def floating_dtypes(model: nn.Module) -> set[torch.dtype]:
    """The dtypes of its parameters, complex ones aside."""
    return {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}


def _exchange(model: nn.Module, tensors: dict[torch.Tensor, torch.Tensor]) -> None:
    model._apply(lambda tensor: tensors.get(tensor, tensor))


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """Two tensors of which this is equal are one: tied weights, as two Parameters may be."""
    try:
        place: int = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse
        place = 0
    return (place or id(tensor), tensor.dtype, tensor.shape, tensor.stride() if place else ())


def _runs(model: nn.Module) -> bool:
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        with torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=device))
    except Exception:  # a user's forward may raise anything; most often RuntimeError, of two dtypes in one product
        return False
    return True
