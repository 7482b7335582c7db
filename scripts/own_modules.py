"""What becomes of the modules that people write: a table of tests/support/own/catalogue.py.

    python -m scripts.own_modules --out docs/measurements/own-modules     the whole catalogue, some 40 minutes
    python -m scripts.own_modules --only rotary                           some of it

Each is loaded from a file, as `gptexport onnx model.py:make` does, exported for every target, compared with itself, and
asked for text, which is compared with what the module says when it is run on the whole of it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
import torch.nn as nn

import gptexport_runtime
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import Exported, export_onnx, pipeline
from gptexport.export.trace import Trace, trace_logits
from gptexport.parity import check_parity
from gptexport_runtime.contract.heads import DECODE, LOGITS
from gptexport_runtime.errors import GPTExportError
from scripts.bench.tables import options, table, write
from tests.support.own.catalogue import CATALOGUE, Variant

FACTORY = "from tests.support.own.catalogue import CATALOGUE\nmake = CATALOGUE[{name!r}].make\n"
REFUSED = "refused"
PROMPTS = [[5, 60, 0], [7]]


@dataclass
class Row:
    """What was seen of one variant. A string that is empty: not looked at."""

    group: str
    name: str
    refused: str = ""  # the error, where it is not exported
    nodes: str = ""  # Attention nodes in the portable graph, of those there should be
    cpu: str = ""  # of them fused at --target cpu
    cuda: str = ""  # and at --target cuda --dtype bfloat16
    int8: str = ""
    parity: str = ""
    generates: bool = False
    cached: bool = False
    why_not: str = ""  # there is no cache
    notes: list[str] = field(default_factory=list)


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json, a row when it is done; rows of an OUT.json are kept")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--missing", action="store_true", help="only what OUT.json does not have")
    parser.add_argument(
        "--brief", action="store_true", help="without cuda, int8 and parity: what is cached, and why not"
    )
    args = parser.parse_args()
    rows = _saved(args.out)
    names = [name for name in CATALOGUE if args.only in name and not (args.missing and name in rows)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, initializer=alone) as pool:
        for name, row in zip(names, pool.map(look, names, [args.brief] * len(names)), strict=True):
            rows[name] = row
            print(_line(row), flush=True)
            if args.out is not None:
                args.out.with_suffix(".json").write_text(_json(rows))
    ordered = {name: rows[name] for name in CATALOGUE if name in rows}
    write(args.out, report([*ordered.values()]))
    if args.out is not None:
        args.out.with_suffix(".json").write_text(_json(ordered))


def _saved(out: Path | None) -> dict[str, Row]:
    if out is None or not out.with_suffix(".json").exists():
        return {}
    return {name: Row(**row) for name, row in json.loads(out.with_suffix(".json").read_text()).items()}


def _json(rows: Mapping[str, Row]) -> str:
    return json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1) + "\n"


def alone() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


@contextmanager
def _traced_once() -> Iterator[None]:
    """A model that is exported for several targets is traced for the first, which takes most of an export's time."""
    traced: dict[tuple[object, ...], Trace] = {}

    def trace(model: nn.Module, **options: int) -> Trace:
        key = (id(model), next(model.parameters()).dtype)
        if key not in traced:
            traced[key] = trace_logits(model, **options)
        made = traced[key]
        return replace(made, model=made.model.clone(), weights=dict(made.weights), audit={}, by_hand=[])

    with mock.patch.object(pipeline, "trace_logits", trace):
        yield


def look(name: str, brief: bool) -> Row:
    with _traced_once():
        return _look(name, brief)


def _look(name: str, brief: bool) -> Row:
    """Everything about one variant. What fails is noted, and does not end the others."""
    variant = CATALOGUE[name]
    row = Row(variant.group, variant.name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.py").write_text(FACTORY.format(name=name))
        source = f"{folder / 'model.py'}:make"
        try:
            checkpoint = load_checkpoint(source)
            done = export_onnx(checkpoint, folder / "portable")
        except GPTExportError as error:
            row.refused = str(error).replace(str(folder), "").replace("/model.py:make: ", "")
            return row
        row.nodes = f"{_count(folder / 'portable')['Attention']}/{variant.nodes}"
        row.cached = DECODE.name in done.manifest.graphs
        row.why_not = done.manifest.left_out.get(DECODE.name, "")
        row.cpu = _fused(checkpoint, folder, variant, row, "GroupQueryAttention", target="cpu")
        row.generates = all(_writes_as_eager(folder / target, checkpoint) for target in ("portable", "cpu"))
        if brief:
            return row
        row.cuda = _fused(checkpoint, folder, variant, row, "Attention", target="cuda", dtype="bfloat16")
        if row.cuda == REFUSED:
            row.cuda = f"{_fused(checkpoint, folder, variant, row, 'Attention', target='cuda')}, float32"
        row.int8 = _int8(checkpoint, folder, row)
        row.parity = _parity(folder, source, row)
    return row


def _count(bundle: Path) -> Counter[str]:
    graph = onnx.load(str(bundle / LOGITS.file), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def _fused(
    checkpoint: Checkpoint, folder: Path, variant: Variant, row: Row, operator: str, target: str, dtype: str = "float32"
) -> str:
    """How many of its attentions are the target's own node; of those with a mask there is none."""
    try:
        done = export_onnx(checkpoint, folder / target, target=target, dtype=dtype)
    except GPTExportError as error:
        row.notes.append(f"{target}: {error}")
        return REFUSED
    _note(done, target, row)
    fused = done.manifest.audit.get(operator, {}).get("achieved", 0)
    whole = _count(done.path)["Attention"] if operator != "Attention" else 0
    return f"{fused}/{variant.nodes}" + (f", {whole} with a mask" if whole else "")


def _note(done: Exported, target: str, row: Row) -> None:
    row.notes += [f"{target}: {note}" for note in done.notes]
    if DECODE.name not in done.manifest.graphs and row.cached:
        row.notes.append(f"{target}: no cache: {done.manifest.left_out.get(DECODE.name)}")


def _int8(checkpoint: Checkpoint, folder: Path, row: Row) -> str:
    try:
        done = export_onnx(checkpoint, folder / "int8", target="cpu", quantize="int8")
    except GPTExportError as error:
        row.notes.append(f"int8: {error}")
        return REFUSED
    size = done.bytes / sum(path.stat().st_size for path in (folder / "cpu").iterdir())
    linears = done.manifest.audit.get("DynamicQuantizeMatMul", {"achieved": 0, "expected": 0})
    return f"{linears['achieved']}/{linears['expected']}, {size:.2f}"


def _parity(folder: Path, source: str, row: Row) -> str:
    try:
        result = check_parity(folder / "portable", source)
    except Exception as error:  # a crash is a row of the table
        row.notes.append(f"parity: {type(error).__name__}: {error}")
        return "error"
    row.notes += [f"parity: {text}" for text in (*result.verdict.reasons, *result.notes)]
    if result.diagnosis.wrong_step is not None:
        row.notes.append("parity: a step is called wrong")
    return "PASS" if result else "FAIL"


def _writes_as_eager(bundle: Path, checkpoint: Checkpoint) -> bool:
    """Greedy text equal to what the module says of the whole of it, up to block_size."""
    if not bundle.exists():
        return True  # refused, which has a column
    with gptexport_runtime.load(bundle, "cpu") as session, torch.no_grad():
        texts = session.generate(PROMPTS, temperature=0, stop=())
        for prompt, new in zip(PROMPTS, texts, strict=True):
            whole = torch.tensor([[*prompt, *new.tolist()]])
            says = checkpoint.model(whole)[0, len(prompt) - 1 : -1].numpy()
            chosen = np.take_along_axis(says, new[:, None], 1)[:, 0]
            if len(new) == 0 or not (chosen >= says.max(1) - 1e-4 * np.abs(says).max()).all():
                return False
    return True


def _line(row: Row) -> str:
    said = row.refused or f"{row.nodes} cpu {row.cpu} cuda {row.cuda} int8 {row.int8} {row.parity}"
    text = "" if row.refused else ("cached" if row.cached else "computed again") if row.generates else "NO TEXT"
    notes = "".join(f"\n    {note}" for note in row.notes)
    why = f"\n    {row.why_not}" if row.why_not else ""
    return f"{row.group}: {row.name}: {said} {text}{why}{notes}"


def report(rows: Sequence[Row]) -> list[str]:
    made = [row for row in rows if not row.refused]
    counts = {
        "are exported": len(made),
        "of those generate": sum(row.generates for row in made),
        "with a cache": sum(row.cached for row in made),
        "have one Attention node a block": sum(whole(row.nodes) for row in made),
        "have both": sum(row.cached and whole(row.nodes) for row in made),
        f"of {sum(bool(row.parity) for row in made)} pass parity": sum(row.parity == "PASS" for row in made),
    }
    summary = [f"- {count} {what}" for what, count in counts.items()]
    taken = [
        f"{len(rows)} of the {len(CATALOGUE)} in tests/support/own/catalogue.py; an empty cell was not looked at.",
        "Attention: nodes of the portable graph, of those there should be. cpu: GroupQueryAttention nodes; an",
        "attention with a softcap, or with a mask that is no window, stays Attention. cuda: Attention nodes with heads",
        "side by side.",
    ]
    title = "# Modules that people write"
    return [title, "", *taken, "", *summary, "", *_tables(made), *_refusals(rows)]


def whole(nodes: str) -> bool:
    there, _, expected = nodes.partition("/")
    return there == expected


def _tables(rows: Iterable[Row]) -> list[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    lines = []
    header = ["module", "Attention", "cpu", "cuda, in bfloat16", "int8: linears, size", "parity", "generates"]
    for group, members in groups.items():
        cells = [[row.name, row.nodes, row.cpu, row.cuda, row.int8, row.parity, _generates(row)] for row in members]
        lines += [f"## {group[:1].upper()}{group[1:]}", "", *table(header, cells), ""]
    return lines


def _generates(row: Row) -> str:
    if not row.generates:
        return "no"
    return "cached" if row.cached else f"again for every token: {_cell(row.why_not)}"


def _refusals(rows: Iterable[Row]) -> list[str]:
    refused = [[row.name, _cell(row.refused)] for row in rows if row.refused]
    return ["## Refused", "", *table(["module", "what is said"], refused)] if refused else []


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    main()
