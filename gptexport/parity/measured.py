"""Everything that was measured, without a judgement: to be saved, and judged again with other gates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.parity.gates import EPS, GATES
from gptexport.parity.metrics import ErrorStats, Positions, ShapeStats
from gptexport.parity.verdict import Invariance, Verdict, judge
from gptexport.precision import Gates
from gptexport.staging import write_output
from gptexport_runtime import GPTExportError

FORMAT = "gptexport-parity"
FORMAT_VERSION = 1
SAVED = "saved measurements"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of the grid."""

    dtype: str  # of the eager model that is the yardstick
    gates: str  # the name in GATES of what the artifact has to keep
    real_text: bool
    stats: tuple[ShapeStats, ...] = ()
    invariances: tuple[Invariance, ...] = ()
    mismatch: tuple[str, ...] = ()  # why the two cannot be compared at all
    environment: Mapping[str, Any] = field(default_factory=dict)  # versions, device, hashes

    def judge(self, gates: Gates | None = None) -> Verdict:
        """Hold the numbers against `gates`, those of the artifact's own precision where None."""
        gates = gates or GATES[self.gates]
        if self.mismatch:
            return Verdict(dtype=self.dtype, gates=gates, shapes=(), invariances=(), reasons=self.mismatch)
        return judge(self.stats, self.invariances, self.dtype, gates, real_text=self.real_text)

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all. Floats keep all digits; what is not finite is written as Python writes it."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
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
        data["invariances"] = tuple(Invariance(**item) for item in data["invariances"])
        data["mismatch"] = tuple(data["mismatch"])
        for name, known in (("dtype", EPS), ("gates", GATES)):
            if data[name] not in known:
                raise ValueError(f"{name} {data[name]!r} is not known")
        return Measured(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GPTExportError(
            f"{path} does not hold saved measurements: {error}. Save them again with --save."
        ) from error


def _stats(item: dict[str, Any]) -> ShapeStats:
    each = {name: np.array(values) for name, values in item.pop("each").items()}
    item["shape"] = tuple(item["shape"])
    item["flip_margins"] = tuple(item["flip_margins"])
    item["histogram"] = tuple(tuple(counts) for counts in item["histogram"])
    for name in ("eager", "actual"):
        item[name] = ErrorStats(**item[name])
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
