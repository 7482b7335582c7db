"""Everything that was measured, without a judgement: to be saved, and judged again with other gates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.parity.measure.invariances import Invariance, Invariant
from gptexport.parity.measure.metrics import Positions, ShapeStats
from gptexport.precision import PRECISIONS, Precision
from gptexport.staging import write_output
from gptexport_runtime import GPTExportError
from gptexport_runtime.contract.document import Format
from gptexport_runtime.files import is_file, read_text

FORMAT = "gptexport-parity"
FORMAT_VERSION = 1
SAVED = "saved measurements"
SAVED_FORMAT = Format(what=SAVED, name=FORMAT, version=FORMAT_VERSION, again="save them again with --save")
INTEGERS = frozenset({"row", "t", "id", "expected_top", "actual_top"})  # of the columns
LARGEST = 1e100  # of a number that is not infinite: its square is not either
MOST_BYTES = 1 << 30  # of a long run: some 200 bytes a position


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of the grid."""

    precision: Precision  # of the artifact: eager computes in its dtype, and its gates are what has to be kept
    real_text: bool
    stats: tuple[ShapeStats, ...] = ()
    invariances: tuple[Invariance, ...] = ()
    special: ShapeStats | None = None  # on rows of ids that models treat specially; no part of the grid's statistics
    special_ids: tuple[int, ...] = ()
    mismatch: tuple[str, ...] = ()  # why the two cannot be compared at all
    environment: Mapping[str, Any] = field(default_factory=dict)  # versions, device, hashes

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all. Floats keep all digits; what is not finite is written as Python writes it."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.precision.dtype,
            "gates": self.precision.name,
            "real_text": self.real_text,
            "mismatch": self.mismatch,
            "environment": dict(self.environment),
            "stats": [asdict(stats) for stats in self.stats],
            "special": asdict(self.special) if self.special else None,
            "special_ids": self.special_ids,
            "invariances": [asdict(invariance) for invariance in self.invariances],
        }
        write_output(path, json.dumps(data, default=_plain).encode(), is_ours=is_measured, what=SAVED)


def is_measured(path: Path) -> bool:
    """Is it a file of `Measured.save`?"""
    if not is_file(path) or path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(99)


def load_measured(path: Path) -> Measured:
    """Read what `Measured.save` wrote.

    Raises:
        GPTExportError: it is something else, or damaged, or of another version.
    """
    try:
        data = SAVED_FORMAT.load(read_text(path, MOST_BYTES), str(path))
        saved = SAVED_FORMAT.build(_Saved, data, "measured")
        if not saved.stats and not saved.mismatch:
            raise ValueError("it has no stats")
        return Measured(
            precision=_precision(gates=saved.gates, dtype=saved.dtype),
            real_text=saved.real_text,
            stats=tuple(_stats(item) for item in saved.stats),
            invariances=tuple(_invariance(item) for item in saved.invariances),
            special=_stats(saved.special) if saved.special else None,
            special_ids=saved.special_ids,
            mismatch=saved.mismatch,
            environment=saved.environment,
        )
    except (GPTExportError, ValueError, OverflowError) as error:  # past what a column of integers holds
        said = str(error).removesuffix(".")
        raise GPTExportError(
            f"{path} does not hold saved measurements: {said}. Save them again with --save."
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What the file holds, as it is in JSON."""

    gates: str
    dtype: str
    real_text: bool
    stats: tuple[Mapping[str, Any], ...]
    invariances: tuple[Mapping[str, Any], ...]
    special: Mapping[str, Any] | None = None
    special_ids: tuple[int, ...] = ()
    mismatch: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def _precision(*, gates: str, dtype: str) -> Precision:
    found = PRECISIONS.get(gates)
    if found is None:
        raise ValueError(f"gates {gates!r} is not known")
    if found.dtype != dtype:
        raise ValueError(f"dtype {dtype!r} is not known of {gates}")
    return found


def _invariance(item: Mapping[str, Any]) -> Invariance:
    stored = item.get("stored", False)  # as files of before 0.2 have it, which do not say the kind
    known = Invariant.WEIGHT if stored else Invariant.HEAD
    kind = item.get("kind", item.get("name") if item.get("name") in list(Invariant) else known)
    return SAVED_FORMAT.build(Invariance, {**item, "kind": Invariant(kind)}, "invariances")


def _stats(item: Mapping[str, Any]) -> ShapeStats:
    stats = SAVED_FORMAT.build(ShapeStats, {**item, "each": None}, "stats")
    columns = SAVED_FORMAT.build(_Columns, item, "stats").each
    names = {f.name for f in fields(Positions)}
    if wrong := set(columns) ^ names:
        raise ValueError(f"stats has the columns {', '.join(sorted(wrong))[:200]}; expected {', '.join(sorted(names))}")
    if min(*stats.shape, stats.positions) < 1 or {len(values) for values in columns.values()} != {stats.positions}:
        raise ValueError(f"stats of {stats.positions} positions, {stats.shape}, has columns of other lengths")
    errors = (stats.eager, stats.actual, stats.agreement)
    numbers = [stats.expected_rms, stats.expected_max, stats.expected_spread, *stats.flip_margins]
    numbers += [value for error in errors if error is not None for value in (error.rms, error.max, error.kl_mean)]
    if any(math.isfinite(value) and abs(value) > LARGEST for value in numbers):
        raise ValueError(f"stats of {stats.shape} holds a number past {LARGEST:g}, which no measurement gives")
    each: dict[str, Any] = {
        name: np.array(values, np.int64 if name in INTEGERS else np.float64) for name, values in columns.items()
    }
    return replace(stats, each=Positions(**each))


@dataclass(frozen=True)
class _Columns:
    each: Mapping[str, tuple[int | float, ...]]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in JSON")
