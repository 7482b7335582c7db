"""Parity on the modules that people write, right and made wrong: 0 alarms about the right ones, no fault unnoticed.

    python -m scripts.own_parity --out docs/measurements/own-parity     the whole catalogue, about an hour
    python -m scripts.own_parity --only rotary                          some of it

Every variant of tests/support/own/catalogue.py is exported and compared with itself. Then each fault below is put
into its graph or weights, at a place drawn by chance, and `parity --quick` has to fail. A fault that changes no logit
by more than the rounding of the graph is none, and is counted apart; so is one that leaves no valid graph.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import check_parity
from gptexport_runtime import ArtifactError, ExecutionError, GPTExportError, load
from scripts.bench.tables import options, table, write
from scripts.own_modules import FACTORY, alone
from tests.support.drawn_faults import FAULTS, DrawnFault
from tests.support.faults import tampered
from tests.support.own.catalogue import CATALOGUE

NO_EFFECT = 3e-6  # relative RMS: the rounding of a float32 graph, here 1e-7 to 1e-6


@dataclass
class Row:
    """What parity said of one variant and of its faults."""

    name: str
    refused: str = ""
    right: str = ""  # PASS, FAIL, doubtful or the exception
    alarms: list[str] = field(default_factory=list)  # notes, and steps called wrong, of the right one
    caught: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--seed", type=int, default=0, help="where the faults are put")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    names = [name for name, variant in CATALOGUE.items() if variant.refused is None and args.only in name]
    rows = []
    with ProcessPoolExecutor(args.workers, get_context("spawn"), initializer=alone) as pool:
        for row in pool.map(look, names, [args.seed] * len(names)):
            rows.append(row)
            print(_line(row), flush=True)
    write(args.out, report(rows), {"seed": args.seed, "rows": [asdict(row) for row in rows]})


def look(name: str, seed: int) -> Row:
    """Parity of one variant as it is, and with each fault."""
    row, draw = Row(name), random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.py").write_text(FACTORY.format(name=name))
        source = f"{folder / 'model.py'}:make"
        try:
            right = export_onnx(load_checkpoint(source), folder / "right", graphs=["logits"]).path
        except GPTExportError as error:
            row.refused = str(error).replace(str(folder), "")
            return row
        try:
            _judge_right(right, source, row)
            for fault_name, fault in FAULTS.items():
                _judge_wrong(right, source, row, fault_name, fault, draw)
        except Exception:  # a crash is what this looks for
            row.right = traceback.format_exc().splitlines()[-1]
    return row


def _judge_right(right: Path, source: str, row: Row) -> None:
    result = check_parity(right, source)
    row.right = "FAIL" if not result else "doubtful" if result.verdict.doubtful else "PASS"
    row.alarms += [*result.verdict.reasons, *result.notes]
    if result.diagnosis.wrong_step is not None:
        row.alarms.append(f"{result.diagnosis.wrong_step.error.name} is called wrong")


def _judge_wrong(right: Path, source: str, row: Row, name: str, fault: DrawnFault, draw: random.Random) -> None:
    applied = []
    wrong = right.with_name("wrong")
    shutil.rmtree(wrong, ignore_errors=True)
    tampered(right, wrong, lambda model: applied.append(fault(model, draw)))
    if not applied[0]:
        return
    try:
        change = _change(right, wrong)
    except (ArtifactError, ExecutionError):
        return  # it is no graph any more
    if change < NO_EFFECT:
        row.without_effect.append(name)
    elif check_parity(wrong, source, quick=True):
        row.missed.append(name)
    else:
        row.caught.append(name)


def _change(right: Path, wrong: Path) -> float:
    """Relative RMS between the logits of two graphs; infinite where one gives NaN and the other does not."""
    with load(right) as a, load(wrong) as b:
        V, T = a.config.predicted_ids, a.config.block_size
        assert T is not None
        ids = np.random.default_rng(1).integers(0, V, (4, T))
        expected, actual = a.logits(ids), b.logits(ids)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return np.inf
    difference = np.square(actual[finite] - expected[finite], dtype=np.float64).mean()
    return float(np.sqrt(difference / np.square(expected[finite], dtype=np.float64).mean()))


def _line(row: Row) -> str:
    if row.refused:
        return f"{row.name}: refused: {row.refused}"
    told = f"{row.name}: {row.right}, {len(row.caught)} of {len(row.caught) + len(row.missed)} faults caught"
    return (
        told
        + "".join(f"\n    ALARM {alarm}" for alarm in row.alarms)
        + "".join(f"\n    MISSED {x}" for x in row.missed)
    )


def report(rows: Sequence[Row]) -> list[str]:
    """The tables."""
    seen = [row for row in rows if not row.refused]
    verdicts = Counter(row.right if row.right in ("PASS", "FAIL", "doubtful") else "an exception" for row in seen)
    caught = Counter(name for row in seen for name in row.caught)
    missed = Counter(name for row in seen for name in row.missed)
    without = Counter(name for row in seen for name in row.without_effect)
    return [
        "# Parity on the modules that people write",
        "",
        f"`python -m scripts.own_parity`: {len(seen)} right modules: "
        f"{', '.join(f'{count} {name}' for name, count in verdicts.items())}; {sum(bool(r.alarms) for r in seen)} with "
        f"an alarm. {caught.total()} of {caught.total() + missed.total()} faults caught.",
        "",
        *table(
            ["fault", "caught", "missed", "changes no logit"],
            ([name, str(caught[name]), str(missed[name]), str(without[name])] for name in FAULTS),
        ),
        *_details(seen),
    ]


def _details(rows: Sequence[Row]) -> Iterator[str]:
    odd = [row for row in rows if row.right != "PASS" or row.alarms or row.missed]
    if odd:
        yield from ("", "What was not as it should be:", "")
    for row in odd:
        yield f"- {row.name}: {row.right}. {'; '.join([*row.alarms, *(f'missed: {name}' for name in row.missed)])}"


if __name__ == "__main__":
    main()
