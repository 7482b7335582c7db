"""Run a model in float64 as it is: each operation is widened as it is called; no weight is copied, no module changed.

A forward may read another module's weights, make masks and tables of its own, call custom functions or write in place:
whatever it does comes down to operations of PyTorch, and those are what is widened here. Two rules decide which:

- What is computed from a weight, or looked up by the ids, is float64, and so is all that is computed from that.
- What is computed from numbers of the forward's own alone (positions, angles of a rotary embedding, masks) keeps its
  dtype: such a table is part of the model as the forward defines it, not rounding noise. It is widened as it meets the
  rest, which changes no number.

An operation that has no float64 is run in its own dtype, and said (`narrowed`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from gptexport.casting import Cast

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64}
aten = torch.ops.aten
# By integers, of one tensor: no arithmetic, so the table stays as it is and what comes out is widened.
LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.take}
# Room to be written into: a float64 value must fit.
CONTAINERS = {aten.zeros, aten.empty, aten.new_zeros, aten.new_empty, aten.empty_strided, aten.new_empty_strided}


@contextmanager
def in_float64(model: nn.Module) -> Iterator[Float64]:
    """While open, the model computes in float64, its forward as it stands.

    So the reference costs the memory of the widest operation, and no second copy of the weights; but for a forward that
    calls what looks at dtypes before its operations are here, as a convolution does. That one's weights are cast.
    """
    cast = nullcontext() if _widens(model) else Cast(model, torch.float64)
    with uncompiled(), warnings.catch_warnings(), cast, Float64(model) as mode:
        # what is called has float64 values and float32 weights, until its operations are here
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        yield mode


def _widens(model: nn.Module) -> bool:
    """Whether the forward runs with its operations widened one by one; found out once for each model."""
    if model not in _WIDENS:
        device = next((parameter.device for parameter in model.parameters()), None)
        try:
            with torch.no_grad(), uncompiled(), Float64(model):
                model(torch.zeros(1, 2, dtype=torch.long, device=device))
        except Exception:  # a user's forward may raise anything
            _WIDENS[model] = False
        else:
            _WIDENS[model] = True
    return _WIDENS[model]


_WIDENS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def uncompiled() -> AbstractContextManager[object]:
    """While open, what torch.compile made runs as eager PyTorch runs it. If its compiler is not loaded, nothing is."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def rounded_to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` as a narrower dtype holds it, in a float64 run too, which else undoes every cast."""
    with _disable_current_modes():
        return x.to(dtype).to(x.dtype)


class Float64(TorchDispatchMode):
    """While active, operations that depend on the weights of `model` compute in float64."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrowed: set[str] = set()  # operations that have no float64
        self._weights = {_storage(parameter) for parameter in model.parameters()} - {0}  # an empty one has no place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_view(func):  # of a weight it is still that weight
            return func(*args, **kwargs)
        operation = getattr(func, "overloadpacket", func)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if operation in LOOKUPS:
            return tree_map(_widened, func(*args, **kwargs))
        if any(x.dtype in NARROW or (x.dtype in WIDE and _storage(x) in self._weights) for x in tensors):
            return self._run_wide(func, args, kwargs)
        if not tensors and operation not in CONTAINERS:
            with suppress(RuntimeError):  # a number that only float64 holds: the least of the dtype that x now has
                return func(*args, **kwargs)
        if not tensors or operation in CONTAINERS:
            args, kwargs = tree_map(_wide_dtype, (args, kwargs))
            kwargs = {"dtype": torch.float64, **kwargs} if not tensors and _is_float(kwargs) else kwargs
        return func(*args, **kwargs)

    def _run_wide(self, func: Any, args: Any, kwargs: Any) -> Any:
        written = {id(x) for x in _written(func, args, kwargs)}

        def widen(x: Any) -> Any:
            return x if id(x) in written else _widened(_wide_dtype(x))

        def narrow(x: Any) -> Any:
            small = isinstance(x, torch.Tensor) and x.dtype in NARROW and id(x) not in written
            return x.to(NARROW[x.dtype]) if small else x

        try:
            wide_args, wide_kwargs = tree_map(widen, (args, kwargs))
            return func(*wide_args, **wide_kwargs)
        except (RuntimeError, NotImplementedError):
            args, kwargs = tree_map(narrow, (args, kwargs))
            result = func(*args, **kwargs)
            self.narrowed.add(str(func))
            return result if written else tree_map(_widened, result)


class Perturbed(TorchDispatchMode):
    """While active, what operations give is off by up to half a rounding: another, equally right, run of the model.

    Args:
        eps: of the dtype that the model computes in.
        lookups: what the embeddings give alone; else every operation's.
    """

    def __init__(self, eps: float, seed: int, *, lookups: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._eps = eps
        self._draw = torch.Generator().manual_seed(seed)
        self._lookups = lookups

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        passes = self._lookups and getattr(func, "overloadpacket", func) not in LOOKUPS
        if passes or _is_view(func) or any(True for _ in _written(func, args, kwargs or {})):
            return result
        return tree_map(self._perturbed, result)

    def _perturbed(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        noise = torch.rand(x.shape, generator=self._draw, dtype=torch.float32) * 2 - 1
        return (x.float() * (1 + self._eps / 2 * noise.to(x.device))).to(x.dtype)


def _storage(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse or nested tensor has none
        return 0


def _is_view(func: Any) -> bool:
    """Whether what it returns is its argument's own memory, which it does not write."""
    returns = getattr(getattr(func, "_schema", None), "returns", ())
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes into."""
    for position, argument in enumerate(getattr(getattr(func, "_schema", None), "arguments", ())):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (x for x in tree_flatten(value)[0] if isinstance(x, torch.Tensor))


def _wide_dtype(x: Any) -> Any:
    return WIDE.get(x, x) if isinstance(x, torch.dtype) else x


def _widened(x: Any) -> Any:
    return x.to(WIDE[x.dtype]) if isinstance(x, torch.Tensor) and x.dtype in WIDE else x


def _is_float(kwargs: dict[str, Any]) -> bool:
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point
