"""What is written: a Parquet file for each shard, one for all documents, and totals. All sums are in float64.

A part has a row for each document in its shard, of all or of some of the document's tokens. Sums are `math.fsum`'s, of
the same numbers in the same order whoever computed them, so that they are equal to the last bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.score.arrow import import_pyarrow
from gptexport.score.scorer import Logprobs
from gptexport.score.windows import Shard, Window
from gptexport.staging import replace_file, replacing
from gptexport_runtime.errors import ExecutionError

KEY = b"gptexport"  # of a part's metadata
DOCUMENTS_AT_ONCE = 1 << 14  # rows that are written together
MOST_NAMED = 20  # documents that a summary names


def part_file(out: Path, number: int) -> Path:
    return out / "parts" / f"part-{number:06}.parquet"


def part_schema(compared: bool, keep: bool) -> Any:
    """Columns of a part. `keep`: the log-probs too."""
    arrow = import_pyarrow()
    sums, lists = arrow.float64(), arrow.list_(arrow.float32())
    fields = [("document", arrow.int64()), ("name", arrow.string()), ("begin", arrow.int64())]
    fields += [("tokens", arrow.int64()), ("bytes", arrow.int64()), ("nll", sums)]
    fields += [("other_nll", sums)] if compared else []
    fields += [("logprobs", lists)] if keep else []
    fields += [("other_logprobs", lists)] if keep and compared else []
    return arrow.schema(fields)


def write_part(out: Path, shard: Shard, logprobs: Sequence[Sequence[Logprobs]], keep: bool) -> None:
    """Write a shard's part: it is there whole, or not at all.

    Raises:
        OutputError: there is no room, or no permission.
    """
    arrow = import_pyarrow()
    rows = [_row(group, logprobs, keep) for _, group in groupby(enumerate(shard.windows), lambda w: w[1].document)]
    schema = part_schema(len(logprobs) > 1, keep)
    metadata = {KEY: json.dumps(shard.identity).encode()}
    table = arrow.Table.from_pylist(rows, schema.with_metadata(metadata))
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(table, sink, use_dictionary=["name"])  # log-probs hardly repeat
    replace_file(part_file(out, shard.number), memoryview(sink.getvalue()))


def _row(
    group: Iterator[tuple[int, Window]], logprobs: Sequence[Sequence[Logprobs]], keep: bool
) -> dict[str, int | float | str | Logprobs | None]:
    """Of one document's windows in a shard."""
    pairs = list(group)
    first = pairs[0][1]
    sizes = [window.bytes for _, window in pairs if window.bytes is not None]
    row: dict[str, int | float | str | Logprobs | None] = {
        "document": first.document,
        "name": first.name,
        "begin": first.begin,
        "tokens": sum(window.scored for _, window in pairs),
        "bytes": sum(sizes) if len(sizes) == len(pairs) else None,
    }
    for side, found in zip(("", "other_"), logprobs, strict=False):
        joined = np.concatenate([found[i] for i, _ in pairs])
        if not np.isfinite(joined).all():
            raise ExecutionError(
                f"{first.name}: a log-prob is {joined[~np.isfinite(joined)][0]}. Ask `gptexport parity` what is wrong "
                "with the model, or export it in float32."
            )
        row[f"{side}nll"] = 0.0 - math.fsum(joined.tolist())
        if keep:
            row[f"{side}logprobs"] = joined
    return row


def identity_of_part(path: Path) -> dict[str, int] | None:
    """Which windows a part is of; None: it is not there, or not readable."""
    arrow = import_pyarrow()
    try:
        metadata = arrow.parquet.read_metadata(path).metadata or {}
        found = json.loads(metadata[KEY])
    except (OSError, KeyError, ValueError, arrow.ArrowException):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Totals:
    """Of documents: counts, and sums of negative log-probs in nats."""

    tolerance: float  # documents whose perplexities are so many times apart count as parted
    documents: int = 0
    tokens: int = 0
    bytes: int | None = 0
    nll: list[float] = field(default_factory=list)  # of some documents each
    other_nll: list[float] = field(default_factory=list)
    ratios: dict[str, int] = field(default_factory=dict)  # how many documents are how far apart
    parted: int = 0
    farthest: list[tuple[float, int, str, float]] = field(default_factory=list)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.documents += len(rows)
        self.tokens += sum(row["tokens"] for row in rows)
        sizes = [row["bytes"] for row in rows]
        self.bytes = None if self.bytes is None or None in sizes else self.bytes + sum(sizes)
        self.nll.append(math.fsum(row["nll"] for row in rows))
        if rows and "other_nll" in rows[0]:
            self.other_nll.append(math.fsum(row["other_nll"] for row in rows))
            self._compare([row for row in rows if row["tokens"]])

    def _compare(self, rows: Sequence[dict[str, Any]]) -> None:
        apart = [(_distance(row["ratio"]), -row["document"], row["name"], row["ratio"]) for row in rows]
        for far, *_ in apart:
            bound = next((name for limit, name in RATIOS if far <= limit), MORE)
            self.ratios[bound] = self.ratios.get(bound, 0) + 1
        parted = [item for item in apart if item[0] > self.tolerance]
        self.parted += len(parted)
        self.farthest = nlargest(MOST_NAMED, [*self.farthest, *parted])

    def to_dict(self) -> dict[str, Any]:
        """As summary.json and --json have it."""
        found: dict[str, Any] = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        found |= rates(math.fsum(self.nll), self.tokens, self.bytes)
        if not self.other_nll:
            return found
        order = [name for _, name in RATIOS] + [MORE]
        return found | {
            "other": rates(math.fsum(self.other_nll), self.tokens, self.bytes),
            "compared": {
                "tolerance": self.tolerance,
                "parted": self.parted,
                "perplexity_ratios": {name: self.ratios[name] for name in order if name in self.ratios},
                "farthest": [
                    {"document": -number, "name": name, "ratio": ratio} for _, number, name, ratio in self.farthest
                ],
            },
        }


def _distance(ratio: float) -> float:
    return max(ratio, 1 / ratio if ratio else math.inf)


RATIOS = [(1 + 10.0**-n, f"up to {1 + 10.0**-n:g}") for n in (6, 5, 4, 3, 2, 1)]
MORE = "more than 1.1"


def rates(nll: float, tokens: int, size: int | None) -> dict[str, float | None]:
    """A sum of negative log-probs, in nats; its perplexity; and its bits for each byte of text."""
    return {
        "nll": nll,
        "perplexity": perplexity(nll, tokens),
        "bits_per_byte": nll / math.log(2) / size if size and tokens else None,
    }


def perplexity(nll: float, tokens: int) -> float | None:
    """exp of the mean negative log-prob; None where nothing was scored, or float64 has no number for it."""
    if not tokens:
        return None
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return None


def write_documents(out: Path, parts: int, compared: bool, tolerance: float) -> Totals:
    """Write documents.parquet, a row for each document, out of the parts; and add them up.

    Raises:
        OutputError: there is no room, or no permission.
    """
    arrow = import_pyarrow()
    totals = Totals(tolerance)
    with (
        replacing(out / "documents.parquet") as path,
        arrow.parquet.ParquetWriter(path, _document_schema(compared)) as to,
    ):
        rows: list[dict[str, Any]] = []
        for _, pieces in groupby(_pieces(out, parts), lambda row: row["document"]):
            rows.append(_document(list(pieces), compared))
            if len(rows) == DOCUMENTS_AT_ONCE:
                _flush(rows, to, totals)
        _flush(rows, to, totals)
    return totals


def _flush(rows: list[dict[str, Any]], to: Any, totals: Totals) -> None:
    if rows:
        totals.add(rows)
        to.write_table(import_pyarrow().Table.from_pylist(rows, to.schema))
        rows.clear()


def _document_schema(compared: bool) -> Any:
    arrow = import_pyarrow()
    sums = arrow.float64()
    fields = [("document", arrow.int64()), ("name", arrow.string()), ("tokens", arrow.int64())]
    fields += [("bytes", arrow.int64()), ("nll", sums), ("perplexity", sums), ("bits_per_byte", sums)]
    fields += [("other_nll", sums), ("other_perplexity", sums), ("ratio", sums)] if compared else []
    return arrow.schema(fields)


def _pieces(out: Path, parts: int) -> Iterator[dict[str, Any]]:
    arrow = import_pyarrow()
    for number in range(parts):
        with arrow.parquet.ParquetFile(part_file(out, number)) as part:
            columns = [name for name in part.schema_arrow.names if not name.endswith("logprobs")]
            for batch in part.iter_batches(columns=columns):
                yield from batch.to_pylist()


def _document(pieces: Sequence[dict[str, Any]], compared: bool) -> dict[str, Any]:
    sizes = [piece["bytes"] for piece in pieces]
    tokens, size = sum(piece["tokens"] for piece in pieces), None if None in sizes else sum(sizes)
    row = {"document": pieces[0]["document"], "name": pieces[0]["name"], "tokens": tokens, "bytes": size}
    row |= rates(math.fsum(piece["nll"] for piece in pieces), tokens, size)
    if compared:
        other = math.fsum(piece["other_nll"] for piece in pieces)
        mean = (other - row["nll"]) / tokens if tokens else 0.0
        row |= {"other_nll": other, "other_perplexity": perplexity(other, tokens)}
        row |= {"ratio": perplexity(mean, 1) if tokens else None}
    return row
