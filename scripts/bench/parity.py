"""How good is parity? Deliberate faults it must catch, right exports it must pass, beside the usual tolerances.

    python -m scripts.bench.parity faults          every fault of tests/support/fault_catalogue.py, in two models
    python -m scripts.bench.parity right -n 200    right exports of random configurations
    python -m scripts.bench.parity right -n 100 --arch llama,nanochat    the same of other architectures, in turn

Seeds are fixed: the same figures on every run, but for what another CPU rounds otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptexport.artifacts import describe_artifact
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import default_grid, diagnose, judge, measure_parity
from gptexport.parity.locate.search import find_wrong_step
from gptexport.precision import FLOAT32
from gptexport_runtime import Session, load
from scripts.bench.tables import table
from tests.support.builders import random_weights, tiny_nanogpt
from tests.support.fault_catalogue import catalogue
from tests.support.faults import tampered
from tests.support.random_models import RANDOM

MODELS: dict[str, dict[str, Any]] = {
    "A": {"n_layer": 4, "n_head": 4, "n_embd": 48, "block_size": 24, "vocab_size": 97},
    "B": {"n_layer": 6, "n_head": 5, "n_embd": 60, "block_size": 40, "vocab_size": 311, "seed": 3, "scale": 0.3},
}


def write_checkpoint(path: Path, *, scale: float = 1.0, gain: float = 1.0, **sizes: Any) -> Path:
    """A nanoGPT checkpoint; all but the gains times `scale`, and the last gain, so the logits, times `gain`."""
    weights = random_weights(**sizes)
    for name in weights if scale != 1.0 else ():
        if not (".ln_" in name and name.endswith(".weight")):
            weights[name] = weights[name] * scale
    if sizes.get("tied", True):
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    weights["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"] * gain
    return tiny_nanogpt(path, weights=weights, **sizes)


@dataclass(frozen=True)
class Rules:
    """What other rules say: True is a pass. Eager is the reference, at the shape that optimum exports with."""

    optimum: bool  # np.allclose(reference, candidate, atol=1e-5)
    allclose: bool  # np.allclose with its defaults


@dataclass(frozen=True)
class Fault:
    """What parity and the other rules said of one deliberate fault."""

    what: str
    model: str
    ratio: float | None
    caught: bool
    located: bool  # to the right block
    known: bool  # it has a name that parity should give it
    named: bool  # and parity gave it
    where: str
    claim: str
    rules: Rules


@dataclass(frozen=True)
class Right:
    """What parity and the other rules said of one right export."""

    number: int
    sizes: dict[str, Any]
    passed: bool
    ratio: float
    max_ratio: float
    step_ratio: float  # the largest of all steps
    step_max_ratio: float
    steps: int
    steps_passed: bool
    reasons: tuple[str, ...]
    rules: Rules


def other_rules(session: Session, checkpoint: Checkpoint) -> Rules:
    ids = np.random.default_rng(0).integers(0, checkpoint.vocab_size, (2, min(16, checkpoint.block_size)))
    with torch.no_grad():
        eager = checkpoint.model(torch.from_numpy(ids)).numpy()
    actual = session.logits(ids)
    return Rules(bool(np.allclose(eager, actual, atol=1e-5)), bool(np.allclose(eager, actual)))


def run_faults(folder: Path) -> Iterator[Fault]:
    """One for each fault and model."""
    for model, sizes in MODELS.items():
        path = write_checkpoint(folder / f"{model}.pt", **sizes)
        bundle = export_onnx(load_checkpoint(str(path)), folder / model).path
        checkpoint = load_checkpoint(str(path))
        for known in catalogue(sizes["n_head"]):
            made = tampered(bundle, folder / "faulty", known.fault)
            with load(made, device="cpu") as session:
                rules = other_rules(session, checkpoint)
                grid, graph = default_grid(checkpoint.block_size), made / "logits.onnx"
                verdict = judge(measure_parity(session, checkpoint, grid, graph=graph))
                found = diagnose(session, checkpoint, describe_artifact(made), verdict, causes=False).wrong_step
            shutil.rmtree(made)
            name = found.error.name if found else ""
            claim = (found.claim or "") if found else ""
            yield Fault(
                what=known.what,
                model=model,
                ratio=verdict.noise_ratio,
                caught=not verdict,
                located=name == known.block or name.startswith((f"{known.block}.", f"{known.block} ")),
                known=bool(known.claim),
                named=bool(known.claim) and known.claim in claim,
                where=name,
                claim=claim or (found.symptom if found else None) or "",
                rules=rules,
            )


def random_configuration(draw: np.random.Generator) -> dict[str, Any]:
    """Layers 1-6, heads 1-8, odd widths, bias or none, tied or not, small logits and large ones."""
    n_head = int(draw.integers(1, 9))
    return {
        "n_layer": int(draw.integers(1, 7)),
        "n_head": n_head,
        "n_embd": n_head * int(draw.integers(1, 25)),
        "block_size": int(draw.integers(2, 97)),
        "vocab_size": int(draw.integers(2, 1500)),
        "bias": bool(draw.integers(2)),
        "tied": bool(draw.integers(2)),
        "seed": int(draw.integers(1 << 30)),
        "gain": float(draw.choice([0.1, 1.0, 10.0])),
    }


def random_gpt2(folder: Path, draw: np.random.Generator) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A checkpoint, its sizes, and the options to read it with."""
    gelus: tuple[str, str] = ("erf", "tanh")
    sizes = random_configuration(draw)
    gelu = gelus[int(draw.integers(2))]
    folder.mkdir(exist_ok=True)
    return write_checkpoint(folder / "right.pt", **sizes), {**sizes, "gelu": gelu}, {"gelu": gelu}


def run_right(folder: Path, numbers: range, archs: Sequence[str] = ("gpt2",)) -> Iterator[Right]:
    """One for each right export; each number is one configuration, whichever others are run."""
    for number in numbers:
        draw = np.random.default_rng([0, number])
        arch = archs[number % len(archs)]
        options: dict[str, Any] = {}
        if arch in RANDOM:
            path = RANDOM[arch](folder / "source", draw)
            sizes = load_checkpoint(str(path)).config.to_dict()
        else:
            path, sizes, options = random_gpt2(folder / "source", draw)
        checkpoint = load_checkpoint(str(path), **options)
        bundle = export_onnx(
            load_checkpoint(str(path), **options), folder / "right", graphs=["logits"], force=True
        ).path
        shutil.rmtree(folder / "source")
        graph = bundle / "logits.onnx"
        with load(bundle, device="cpu") as session:
            rules = other_rules(session, checkpoint)
            verdict = judge(measure_parity(session, checkpoint, default_grid(checkpoint.block_size), graph=graph))
        ids = draw.integers(0, checkpoint.vocab_size, (3, min(17, checkpoint.block_size)))
        steps, wrong = find_wrong_step(checkpoint.model, graph, ids, precision=FLOAT32, right=graph)
        yield Right(
            number=number,
            sizes=sizes,
            passed=bool(verdict),
            ratio=max(row.noise_ratio for row in verdict.shapes),
            max_ratio=max(row.max_ratio for row in verdict.shapes),
            step_ratio=max(step.ratio for step in steps),
            step_max_ratio=max(step.max_ratio for step in steps),
            steps=len(steps),
            steps_passed=wrong is None,
            reasons=tuple(verdict.reasons),
            rules=rules,
        )


def print_faults(faults: list[Fault]) -> None:
    yes = {True: "yes", False: "**no**"}
    rows = []
    for fault in faults:
        ratio = "NaN" if fault.ratio is None or not np.isfinite(fault.ratio) else f"{fault.ratio:,.3g}"
        where = f"`{fault.where}`" if fault.where else "–"
        others = (yes[not fault.rules.optimum], yes[not fault.rules.allclose])
        rows.append(
            [fault.what, fault.model, ratio, yes[fault.caught], where, yes[fault.located], fault.claim, *others]
        )
    header = "fault, model, noise ratio, caught, first wrong step, right block, looks like, atol 1e-5, np.allclose"
    print("\n".join(table(header.split(", "), rows)))
    counts = {
        "caught by parity": sum(fault.caught for fault in faults),
        "located to the right block": sum(fault.located for fault in faults),
        f"named rightly, of {sum(f.known for f in faults)} that have a name": sum(fault.named for fault in faults),
        "caught by atol 1e-5": sum(not fault.rules.optimum for fault in faults),
        "caught by np.allclose": sum(not fault.rules.allclose for fault in faults),
    }
    for text, count in counts.items():
        print(f"{text}: {count} of {len(faults)}", file=sys.stderr)


def print_right(exports: list[Right]) -> None:
    alarms = {
        "parity": sum(not export.passed for export in exports),
        "its steps": sum(not export.steps_passed for export in exports),
        "atol 1e-5": sum(not export.rules.optimum for export in exports),
        "np.allclose": sum(not export.rules.allclose for export in exports),
    }
    for rule, count in alarms.items():
        print(f"false alarms of {rule}: {count} of {len(exports)}")
    for name in ("ratio", "max_ratio", "step_ratio", "step_max_ratio"):
        values = [getattr(export, name) for export in exports]
        print(f"{name}: median {np.median(values):.2f}, 99 % {np.percentile(values, 99):.2f}, max {max(values):.2f}")
    print(f"steps judged: {sum(export.steps for export in exports)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "right"])
    parser.add_argument("-n", type=int, default=200, help="how many right exports")
    parser.add_argument("--skip", type=int, default=0, help="how many of them to leave out, at the beginning")
    parser.add_argument("--arch", default="gpt2", help="some of: " + ", ".join(("gpt2", *RANDOM)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "faults":
            print_faults(list(run_faults(Path(folder))))
            return
        exports = []
        for export in run_right(Path(folder), range(arguments.skip, arguments.n), arguments.arch.split(",")):
            exports.append(export)
            sizes = " ".join(f"{key}={export.sizes[key]}" for key in ("n_layer", "n_head", "n_embd", "block_size"))
            failed = "" if export.passed else export
            print(f"{export.number} {sizes} ratio={export.ratio:.2f} step={export.step_ratio:.2f} {failed}", flush=True)
    print_right(exports)


if __name__ == "__main__":
    main()
