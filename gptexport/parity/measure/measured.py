"""Everything that was measured, without a judgement: to be saved, and judged again with other gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.parity.measure.invariances import Invariance, Invariant
from gptexport.parity.measure.metrics import ErrorStats, Positions, ShapeStats
from gptexport.precision import PRECISIONS, Precision
from gptexport.staging import write_output
from gptexport_runtime import GPTExportError

FORMAT = "gptexport-parity"
FORMAT_VERSION = 1
SAVED = "saved measurements"


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
    if not path.is_file() or path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(99)


def load_measured(path: Path) -> Measured:
    """Read what `Measured.save` wrote.

    Raises:
        GPTExportError: it is something else, or damaged, or of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT or data.pop("format_version") != FORMAT_VERSION:
            raise ValueError(f"not a {FORMAT} of version {FORMAT_VERSION}")
        data["stats"] = tuple(_stats(item) for item in data["stats"])
        data["invariances"] = tuple(_invariance(item) for item in data["invariances"])
        data["special"] = _stats(data["special"]) if data.get("special") else None
        data["special_ids"] = tuple(data.get("special_ids", ()))
        data["mismatch"] = tuple(data["mismatch"])
        precision = _precision(gates=data.pop("gates"), dtype=data.pop("dtype"))
        return Measured(precision=precision, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GPTExportError(
            f"{path} does not hold saved measurements: {error}. Save them again with --save."
        ) from error


def _precision(*, gates: str, dtype: str) -> Precision:
    found = PRECISIONS.get(gates)
    if found is None:
        raise ValueError(f"gates {gates!r} is not known")
    if found.dtype != dtype:
        raise ValueError(f"dtype {dtype!r} is not known of {gates}")
    return found


def _invariance(item: dict[str, Any]) -> Invariance:
    stored = item.pop("stored", False)  # as files of before 0.2 have it, which do not say the kind
    known = Invariant.WEIGHT if stored else Invariant.HEAD
    kind = item.pop("kind", item["name"] if item["name"] in list(Invariant) else known)
    return Invariance(kind=Invariant(kind), **item)


def _stats(item: dict[str, Any]) -> ShapeStats:
    each = {name: np.array(values) for name, values in item.pop("each").items()}
    item["shape"] = tuple(item["shape"])
    item["flip_margins"] = tuple(item["flip_margins"])
    item["histogram"] = tuple(tuple(counts) for counts in item["histogram"])
    for name in ("eager", "actual", "agreement"):
        item[name] = ErrorStats(**item[name]) if item.get(name) else None
    unknown = set(each) ^ {f.name for f in fields(Positions)}
    if unknown:
        raise ValueError(f"columns {', '.join(sorted(unknown))}")
    lengths = {len(values) for values in each.values()}
    if lengths != {item["positions"]}:
        raise ValueError(f"columns of {lengths} positions, where there are {item['positions']}")
    return ShapeStats(**item, each=Positions(**each))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in JSON")
