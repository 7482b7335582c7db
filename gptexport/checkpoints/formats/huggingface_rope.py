"""Rotary positions in a config.json of transformers: base, scaling, and how much of a head turns."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport.architectures.rotary import Linear, Llama3, Scaling, Yarn
from gptexport.checkpoints.sizes import positive_integer, positive_number
from gptexport.errors import CheckpointError

Fields = Mapping[str, Any]
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Rope:
    base: float
    scaling: Scaling | None
    share: float  # of a head's numbers that turn


@dataclass(frozen=True)
class Names:
    base: str = "rope_theta"
    share: str = "partial_rotary_factor"


NAMES = Names()


def rope_of(fields: Fields, path: Path, *, names: Names = NAMES, share: float = 1.0) -> Rope:
    """What a config says of rotary positions, in transformers 5's `rope_parameters` or in the fields before it.

    Args:
        fields: the config's, max_position_embeddings among them.
        names: what the base and the share are called outside `rope_parameters`.
        share: the default of the share.

    Raises:
        CheckpointError: a scaling that gptexport does not do, or a number in it that is missing or wrong.
    """
    found = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: rope parameters are {found!r}; expected an object.")
    rope = {**found, _ORIGINAL: _original(fields, found)}
    base = rope.get("rope_theta", fields.get(names.base, 10_000.0))
    partial = rope.get("partial_rotary_factor", fields.get(names.share))
    kind = rope.get("rope_type", rope.get("type", "default"))
    make = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise CheckpointError(
            f"{path}: rope_type is {kind!r}; gptexport does {', '.join(_SCALINGS)}. Export the model through its own "
            "code: `gptexport onnx module.py:factory`."
        )
    return Rope(
        base=positive_number(base, names.base, path),
        scaling=make(rope, fields, path),
        share=share if partial is None else positive_number(partial, names.share, path),
    )


def _original(fields: Fields, rope: Fields) -> Any:
    for holder in (fields, rope):
        if holder.get(_ORIGINAL) is not None:
            return holder[_ORIGINAL]
    return fields["max_position_embeddings"]


def _default(rope: Fields, fields: Fields, path: Path) -> None:
    """Also of `dynamic`, which changes nothing up to max_position_embeddings, the longest text of an export."""


def _linear(rope: Fields, fields: Fields, path: Path) -> Linear:
    return Linear(factor=positive_number(rope.get("factor"), "factor", path))


def _llama3(rope: Fields, fields: Fields, path: Path) -> Llama3:
    return Llama3(
        factor=positive_number(rope.get("factor"), "factor", path),
        low_freq_factor=positive_number(rope.get("low_freq_factor"), "low_freq_factor", path),
        high_freq_factor=positive_number(rope.get("high_freq_factor"), "high_freq_factor", path),
        original_block_size=positive_integer(rope[_ORIGINAL], _ORIGINAL, path),
    )


def _yarn(rope: Fields, fields: Fields, path: Path) -> Yarn:
    original = positive_integer(rope[_ORIGINAL], _ORIGINAL, path)
    given = rope.get("factor")
    longest = fields["max_position_embeddings"] if given is None else 1
    factor = positive_number(longest, "max_position_embeddings", path) / original
    if given is not None:
        factor = positive_number(given, "factor", path)
    gain = rope.get("attention_factor")
    if gain is None:
        mscale, everywhere = rope.get("mscale"), rope.get("mscale_all_dim")
        gain = _mscale(factor)
        if mscale and everywhere:
            gain = _mscale(factor, positive_number(mscale, "mscale", path)) / _mscale(
                factor, positive_number(everywhere, "mscale_all_dim", path)
            )
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise CheckpointError(f"{path}: truncate is {truncate!r}; expected true or false.")
    return Yarn(
        factor=factor,
        original_block_size=original,
        beta_fast=positive_number(rope.get("beta_fast") or 32.0, "beta_fast", path),
        beta_slow=positive_number(rope.get("beta_slow") or 1.0, "beta_slow", path),
        gain=positive_number(gain, "attention_factor", path),
        truncate=truncate,
    )


_SCALINGS: dict[str, Callable[[Fields, Fields, Path], Scaling | None]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
