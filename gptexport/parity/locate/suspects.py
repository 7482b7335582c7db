"""The usual suspects, function by function.

Nothing is decided here. An experiment computes the step with the suspect in place of the function, and believes it
only if the graph's error is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from gptexport.parity.locate.attention_suspects import suspects_of_attention
from gptexport.parity.locate.norm_suspects import suspects_of_layer_norm, suspects_of_rms_norm
from gptexport.parity.locate.suspect import Fit, Function, Suspect
from gptexport.parity.measure.float64 import rounded_to

NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def suspects_of(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Suspect | Fit]:
    """All suspects of one call, the more particular first."""
    makers: dict[str, Callable[..., Iterator[Suspect | Fit]]] = {
        "gelu": _gelu,
        "silu": _silu,
        "relu": _relu,
        "square": _square,
        "tanh": _tanh,
        "layer_norm": suspects_of_layer_norm,
        "rms_norm": suspects_of_rms_norm,
        "scaled_dot_product_attention": suspects_of_attention,
        "linear": _linear,
        "embedding": _embedding,
        "arange": _arange,
        "add": _add,
    }
    if function in makers:
        yield from makers[function](*args, **kwargs)


ACTIVATIONS: dict[str, Function] = {
    "GELU erf": lambda x, *_args, **_: F.gelu(x),
    "GELU tanh": lambda x, *_args, **_: F.gelu(x, approximate="tanh"),
    "x·sigmoid(1.702x)": lambda x, *_args, **_: x * torch.sigmoid(1.702 * x),
    "SiLU": lambda x, *_args, **_: F.silu(x),
    "ReLU": lambda x, *_args, **_: F.relu(x),
    "ReLU²": lambda x, *_args, **_: F.relu(x).square(),
    "no activation": lambda x, *_args, **_: x,
}


def _gelu(x: torch.Tensor, approximate: str = "none") -> Iterator[Suspect]:
    expected = "tanh" if approximate == "tanh" else "erf"
    for kind, compute in ACTIVATIONS.items():
        if kind != f"GELU {expected}":
            shown = expected if kind.startswith("GELU ") else f"GELU {expected}"
            yield Suspect("gelu", f"{kind} for {shown}", compute)


def _silu(*_args: Any, **_kwargs: Any) -> Iterator[Suspect]:
    for kind, compute in ACTIVATIONS.items():
        if kind != "SiLU":
            yield Suspect("silu", f"{kind} for SiLU", compute)


def _relu(*_args: Any, **_kwargs: Any) -> Iterator[Suspect]:
    for kind, compute in ACTIVATIONS.items():
        if kind != "ReLU":
            yield Suspect("relu", f"{kind} for ReLU", compute)


def _square(*_args: Any, **_kwargs: Any) -> Iterator[Suspect]:
    yield Suspect("square", "not squared", lambda x: x)


def _tanh(*_args: Any, **_kwargs: Any) -> Iterator[Suspect | Fit]:
    """A softcap c·tanh(x/c), which is all that a GPT has a tanh for."""
    yield Suspect("tanh", "no softcap", lambda x: x)
    yield Fit("tanh", lambda a: f"softcap multiplied by {1 / a:.7g}", lambda a: lambda x: torch.tanh(a * x) / a)


def gates(calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterator[Suspect]:
    """Suspects of act(gate) * up, found among functions that were called: their names and arguments."""
    acts = [(_function(name), args[0]) for name, args in calls if name in ("silu", "gelu", "relu", "sigmoid")]
    for name, factors in calls:
        if name == "mul" and len(factors) == 2 and all(isinstance(factor, torch.Tensor) for factor in factors):
            for act, gate in acts:
                if gate.shape == factors[0].shape and torch.equal(act(gate), factors[0]):
                    yield Suspect("mul", "gate and up exchanged", lambda _x, up, act=act, gate=gate: gate * act(up))
                    yield Suspect("mul", "the product with up is missing", lambda x, _up: x)


def _function(name: str) -> Function:
    found: Function = getattr(F, name) if hasattr(F, name) else getattr(torch, name)
    return found


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> Iterator[Suspect | Fit]:
    def suspect(claim: str, compute: Callable[[Any, Any, Any], torch.Tensor]) -> Suspect:
        return Suspect("linear", claim, lambda x, w, b=None: compute(x, w, b))

    if bias is not None:
        yield suspect("bias missing", lambda x, w, _b: F.linear(x, w))
    if weight.shape[0] == weight.shape[1]:
        yield suspect("weights transposed", lambda x, w, b: F.linear(x, w.t(), b))
    yield suspect("sign of the weights flipped", lambda x, w, b: F.linear(x, -w, b))
    for name, dtype in NARROW.items():
        yield suspect(f"weights rounded to {name}", partial(_rounded_linear, dtype, (False, True)))
        yield suspect(f"inputs rounded to {name}", partial(_rounded_linear, dtype, (True, False)))
        yield suspect(f"inputs and weights rounded to {name}", partial(_rounded_linear, dtype, (True, True)))
    yield Fit("linear", "weights multiplied by {:.7g}".format, lambda a: lambda x, w, b=None: F.linear(x, a * w, b))


def _rounded_linear(dtype: torch.dtype, which: tuple[bool, bool], x: Any, weight: Any, bias: Any) -> torch.Tensor:
    x, weight = (rounded_to(t, dtype) if yes else t for t, yes in zip((x, weight), which, strict=True))
    return F.linear(x, weight, bias)


def _embedding(idx: torch.Tensor, weight: torch.Tensor, *_args: Any, **_kwargs: Any) -> Iterator[Suspect]:
    rows = weight.shape[0]

    def moved(offset: int, *, cyclic: bool) -> Function:
        def compute(idx: torch.Tensor, weight: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            other = idx + offset
            return F.embedding(other % rows if cyclic else other.clamp(0, rows - 1), weight)

        return compute

    for offset in (1, -1, 2):
        yield Suspect("embedding", f"positions or ids off by {offset:+d}", moved(offset, cyclic=False))
        yield Suspect("embedding", f"positions or ids off by {offset:+d}, cyclically", moved(offset, cyclic=True))


def _arange(*_args: Any, **_kwargs: Any) -> Iterator[Suspect]:
    for offset in (1, -1, 2):
        for how in ("", ", and end at the last"):
            yield Suspect("arange", f"positions off by {offset:+d}{how}", partial(_later, offset, bool(how)))


def _later(offset: int, held: bool, *args: Any, **kwargs: Any) -> torch.Tensor:
    positions = torch.arange(*args, **kwargs)
    return (positions + offset).clamp(0, len(positions) - 1) if held else positions + offset


def _add(x: Any, y: Any, **_: Any) -> Iterator[Suspect | Fit]:
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.is_floating_point()):
        return
    branch, stream = "what is added (a branch, or the positions)", "what it is added to (the residual, or the tokens)"
    yield Suspect("add", f"{branch} is dropped", lambda x, y, **_: x + 0 * y)
    yield Suspect("add", f"{stream} is dropped", lambda x, y, **_: 0 * x + y)
    yield Fit("add", (branch + " multiplied by {:.7g}").format, lambda a: lambda x, y, **_: x + a * y)
    yield Fit("add", (stream + " multiplied by {:.7g}").format, lambda a: lambda x, y, **_: a * x + y)
