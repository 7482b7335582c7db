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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import check_parity
from gptexport_runtime import ArtifactError, ExecutionError, GPTExportError, load
from scripts.bench.tables import options, table, write
from scripts.own_modules import FACTORY, alone
from tests.support.faults import insert_after, nodes, other_mask, tampered
from tests.support.own.catalogue import CATALOGUE

# Where the fault is put is drawn; False: the graph has no such place.
Fault = Callable[[ModelProto, random.Random], bool]
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


def _judge_wrong(right: Path, source: str, row: Row, name: str, fault: Fault, draw: random.Random) -> None:
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


def _weights(model: ModelProto, rank: int) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == rank]


def _edit(rank: int, change: Callable[[np.ndarray, random.Random], np.ndarray]) -> Fault:
    """Change one weight of a rank."""

    def fault(model: ModelProto, draw: random.Random) -> bool:
        found = [t for t in _weights(model, rank) if max(t.dims) > 1]
        if found:
            tensor = draw.choice(found)
            made = change(numpy_helper.to_array(tensor).copy(), draw).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
        return bool(found)

    return fault


def _a_row(change: Callable[[np.ndarray, np.ndarray], None]) -> Fault:
    """Change one or two rows of a matrix, which an embedding or a linear reads."""

    def fault(w: np.ndarray, draw: random.Random) -> np.ndarray:
        i, j = draw.sample(range(len(w)), 2)
        a, b = w[i].copy(), w[j].copy()
        change(a, b)
        w[i], w[j] = a, b
        return w

    return _edit(2, fault)


def _swap(a: np.ndarray, b: np.ndarray) -> None:
    a[:], b[:] = b.copy(), a.copy()


def _negate(a: np.ndarray, _b: np.ndarray) -> None:
    a *= -1


def _in_bfloat16(w: np.ndarray, _draw: random.Random) -> np.ndarray:
    return (w.view(np.uint32) & 0xFFFF0000).view(np.float32)


def _scores(factor: float) -> Fault:
    """Queries of one attention times a factor: another slope of its softmax."""

    def fault(model: ModelProto, draw: random.Random) -> bool:
        found = nodes(model, "Attention")
        if found:
            node = draw.choice(found)
            at = list(model.graph.node).index(node)
            model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "slope"))
            model.graph.node.insert(at, helper.make_node("Mul", [node.input[0], "slope"], ["sloped"]))
            node.input[0] = "sloped"
        return bool(found)

    return fault


def _sees_the_future(model: ModelProto, draw: random.Random) -> bool:
    found = [
        i
        for i, node in enumerate(nodes(model, "Attention"))
        if any(a.name == "is_causal" and a.i for a in node.attribute)
    ]
    if found:
        other_mask(draw.choice(found), None)(model)
    return bool(found)


def _loses_a_residual(model: ModelProto, draw: random.Random) -> bool:
    """A sum of two values, neither a weight, becomes its second."""
    constants = {t.name for t in model.graph.initializer} | {n.output[0] for n in nodes(model, "Constant")}
    found = [node for node in nodes(model, "Add") if not constants & set(node.input)]
    if found:
        node = draw.choice(found)
        node.op_type = "Identity"
        del node.input[0]
    return bool(found)


def _another_activation(model: ModelProto, draw: random.Random) -> bool:
    found = [*nodes(model, "Gelu"), *nodes(model, "Relu"), *nodes(model, "Sigmoid")]
    if found:
        node = draw.choice(found)
        if node.op_type == "Gelu":
            tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "none" if tanh else "tanh"))
        else:
            node.op_type = "Elu" if node.op_type == "Relu" else "HardSigmoid"
    return bool(found)


def _another_eps(model: ModelProto, draw: random.Random) -> bool:
    """A norm's eps a hundred times larger, as an attribute or as a number that is added."""
    attributes = [a for node in model.graph.node for a in node.attribute if a.name == "epsilon" and a.f > 0]
    small = [t for t in _scalars(model) if 0 < numpy_helper.to_array(t).item() <= 1e-4]
    if attributes:
        draw.choice(attributes).f *= 100
    elif small:
        _times(draw.choice(small), 100)
    return bool(attributes or small)


def _another_number(model: ModelProto, draw: random.Random) -> bool:
    """A number of the forward, off by a hundredth."""
    found = [t for t in _scalars(model) if np.isfinite(v := numpy_helper.to_array(t).item()) and 1e-3 < abs(v) < 1e3]
    if found:
        _times(draw.choice(found), 1.01)
    return bool(found)


def _scalars(model: ModelProto) -> list[TensorProto]:
    inside = [a.t for node in nodes(model, "Constant") for a in node.attribute if a.name == "value"]
    floats = [t for t in (*model.graph.initializer, *inside) if t.data_type == TensorProto.FLOAT]
    return [t for t in floats if int(np.prod(t.dims)) == 1]


def _times(tensor: TensorProto, factor: float) -> None:
    made = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))


def _in_float16(model: ModelProto, draw: random.Random) -> bool:
    """What a matrix product gives, rounded to float16."""

    def cast(old: str, new: str) -> list[NodeProto]:
        half = helper.make_node("Cast", [old], [f"{old}.half"], to=TensorProto.FLOAT16)
        return [half, helper.make_node("Cast", [f"{old}.half"], [new], to=TensorProto.FLOAT)]

    found = [node for node in nodes(model, "MatMul") if node.output[0] != model.graph.output[0].name]
    if found:
        insert_after(model, draw.choice(found).output[0], cast)
    return bool(found)


FAULTS: dict[str, Fault] = {
    "a matrix 0.1 % larger": _edit(2, lambda w, _: w * 1.001),
    "a row of a matrix negated": _a_row(_negate),
    "two rows of a matrix exchanged": _a_row(_swap),
    "a matrix cut to bfloat16": _edit(2, _in_bfloat16),
    "a vector 0.1 % larger": _edit(1, lambda w, _: w * 1.001),
    "a vector cut to bfloat16": _edit(1, _in_bfloat16),
    "scores 1 % steeper": _scores(1.01),
    "the future is seen": _sees_the_future,
    "a residual lost": _loses_a_residual,
    "another activation": _another_activation,
    "another eps": _another_eps,
    "a number 1 % larger": _another_number,
    "a product in float16": _in_float16,
}


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
