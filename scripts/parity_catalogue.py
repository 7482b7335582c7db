"""How good is parity? Deliberate faults it must catch, right exports it must pass, beside the usual tolerances.

    python scripts/parity_catalogue.py faults          every fault in tests/faults.py, in two models
    python scripts/parity_catalogue.py right -n 200    right exports of random configurations

Seeds are fixed: the same figures on every run, but for what another CPU rounds otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import default_grid, diagnose, measure_parity
from gptexport.parity.locate import find_divergence
from gptexport_runtime import load

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.builders import random_weights, tiny_nanogpt
from tests.support.fault_catalogue import catalogue
from tests.support.faults import tampered

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


def other_rules(session: Any, checkpoint: Checkpoint) -> Rules:
    ids = np.random.default_rng(0).integers(0, checkpoint.vocab_size, (2, min(16, checkpoint.block_size)))
    with torch.no_grad():
        eager = checkpoint.model(torch.from_numpy(ids)).numpy()
    actual = session.logits(ids)
    return Rules(bool(np.allclose(eager, actual, atol=1e-5)), bool(np.allclose(eager, actual)))


def run_faults(folder: Path) -> Iterator[dict[str, Any]]:
    """One row per fault and model."""
    for model, sizes in MODELS.items():
        path = write_checkpoint(folder / f"{model}.pt", **sizes)
        bundle = export_onnx(load_checkpoint(str(path)), folder / model).path
        checkpoint = load_checkpoint(str(path))
        for what, fault, block, words in catalogue(sizes["n_head"]):
            made = tampered(bundle, folder / "faulty", fault)
            with load(made, device="cpu") as session:
                rules = other_rules(session, checkpoint)
                grid, graph = default_grid(checkpoint.block_size), made / "logits.onnx"
                verdict = measure_parity(session, checkpoint, grid, graph=graph).judge()
                found = diagnose(session, checkpoint, graph, verdict, blame=False).divergence
            shutil.rmtree(made)
            name = found.place.name if found else ""
            claim = (found.claim or "") if found else ""
            yield {
                "model": model,
                "what": what,
                "caught": not verdict,
                "ratio": verdict.noise_ratio,
                "located": name == block or name.startswith((f"{block}.", f"{block} ")),
                "known": bool(words),
                "named": bool(words) and words in claim,
                "where": name,
                "claim": claim or (found.symptom if found else None) or "",
                "optimum": not rules.optimum,
                "allclose": not rules.allclose,
            }


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


def run_right(folder: Path, numbers: range) -> Iterator[dict[str, Any]]:
    """One row per right export; each number is one configuration, whichever others are run."""
    for number in numbers:
        draw = np.random.default_rng([0, number])
        sizes = random_configuration(draw)
        gelu = ("erf", "tanh")[int(draw.integers(2))]
        path = write_checkpoint(folder / "right.pt", **sizes)
        checkpoint = load_checkpoint(str(path), gelu=gelu)  # type: ignore[arg-type]
        bundle = export_onnx(load_checkpoint(str(path), gelu=gelu), folder / "right", force=True).path  # type: ignore[arg-type]
        with load(bundle, device="cpu") as session:
            rules = other_rules(session, checkpoint)
            graph = bundle / "logits.onnx"
            verdict = measure_parity(session, checkpoint, default_grid(checkpoint.block_size), graph=graph).judge()
        ids = draw.integers(0, checkpoint.vocab_size, (3, min(17, checkpoint.block_size)))
        steps, wrong = find_divergence(checkpoint.model, graph, ids, dtype="float32")
        yield {
            "number": number,
            **sizes,
            "gelu": gelu,
            "passed": bool(verdict),
            "ratio": verdict.noise_ratio,
            "max_ratio": max(row.max_ratio for row in verdict.shapes),
            "step_ratio": max(step.ratio for step in steps),
            "step_max_ratio": max(step.max_ratio for step in steps),
            "steps": len(steps),
            "steps_passed": wrong is None,
            "reasons": verdict.reasons,
            "optimum": rules.optimum,
            "allclose": rules.allclose,
        }


def print_faults(rows: list[dict[str, Any]]) -> None:
    mark = {True: "yes", False: "**no**"}
    header = "fault, model, noise ratio, caught, first wrong step, right block, looks like, atol 1e-5, np.allclose"
    print("| " + header.replace(", ", " | ") + " |")
    print("|---" * 9 + "|")
    for row in rows:
        ratio = "NaN" if row["ratio"] is None or not np.isfinite(row["ratio"]) else f"{row['ratio']:,.3g}"
        cells = (row["what"], row["model"], ratio, mark[row["caught"]], f"`{row['where']}`" if row["where"] else "–",
                 mark[row["located"]], row["claim"], mark[row["optimum"]], mark[row["allclose"]])  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    total = len(rows)
    for key, text in (("caught", "caught by parity"), ("located", "located to the right block"),
                      ("named", f"named rightly, of {sum(r['known'] for r in rows)} that have a name"),
                      ("optimum", "caught by atol 1e-5"), ("allclose", "caught by np.allclose")):  # fmt: skip
        print(f"{text}: {sum(row[key] for row in rows)} of {total}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "right"])
    parser.add_argument("-n", type=int, default=200, help="how many right exports")
    parser.add_argument("--skip", type=int, default=0, help="how many of them to leave out, at the beginning")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "faults":
            print_faults(list(run_faults(Path(folder))))
            return
        rows = []
        for row in run_right(Path(folder), range(arguments.skip, arguments.n)):
            rows.append(row)
            told = " ".join(f"{key}={row[key]}" for key in ("number", "n_layer", "n_head", "n_embd", "block_size"))
            failed = "" if row["passed"] else row
            print(f"{told} ratio={row['ratio']:.2f} step={row['step_ratio']:.2f} {failed}", flush=True)
    rules = {"passed": "parity", "steps_passed": "its steps", "optimum": "atol 1e-5", "allclose": "np.allclose"}
    for key, text in rules.items():
        print(f"false alarms of {text}: {sum(not row[key] for row in rows)} of {len(rows)}")
    for key in ("ratio", "max_ratio", "step_ratio", "step_max_ratio"):
        values = [row[key] for row in rows]
        print(f"{key}: median {np.median(values):.2f}, 99 % {np.percentile(values, 99):.2f}, max {max(values):.2f}")
    print(f"steps judged: {sum(row['steps'] for row in rows)}")


if __name__ == "__main__":
    main()
