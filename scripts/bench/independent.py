"""What `gptexport bench` says, beside plain loops, each in a process of its own that knows nothing of bench.

    python -m scripts.bench.independent --out docs/measurements/bench
    python -m scripts.bench.independent --artifact demo/gpt --checkpoint demo/ckpt.pt --shapes 1x1,1x128

A loop makes calls for two seconds that do not count, then for two seconds that do, and gives their median. Loops and
bench take turns, round by round; figures are medians over the rounds. Exit code 1 if one is more than 10 % off.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from scripts.bench.models import write_apart
from scripts.bench.processes import GPTEXPORT
from scripts.bench.tables import Shape, options, shapes_of, table, write

LIMIT = 0.10
LOOP = """
import statistics, sys, time
import numpy as np
side, artifact, checkpoint, B, T = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
if side == "gptexport":
    import gptexport_runtime
    session = gptexport_runtime.load(artifact)
    ids = np.random.default_rng(0).integers(0, session.config.vocab_size, (B, T))
    out = np.empty((B, T, session.config.vocab_size), np.float32)
    call = lambda: session.logits(ids, out=out)
else:
    import torch
    from gptexport.checkpoints import load_checkpoint
    model = load_checkpoint(checkpoint).model.eval()
    ids = torch.randint(0, model.config.vocab_size, (B, T))
    def call():
        with torch.inference_mode():
            model(ids)
times, start = [], time.perf_counter()
while (began := time.perf_counter()) < start + 4 or len(times) < 3:
    call()
    if began > start + 2:
        times.append(time.perf_counter() - began)
print(statistics.median(times))
"""
Figure = tuple[str, Shape]  # the side, and (B,T)


def main() -> int:
    parser = options(__doc__, writes="OUT.md and OUT.json", rounds=3)
    parser.add_argument("--artifact", type=Path, default=Path("demo/gpt"))
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/ckpt.pt"))
    parser.add_argument("--shapes", type=shapes_of, default=shapes_of("1x1,1x128,4x128"))
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "scripts.bench.independent", *sys.argv[1:]])
    lines = ["# What bench says, beside plain loops", "", f"Made by `{command}`.", ""]
    worst = 0.0
    data: dict[str, list[list[str]]] = {}
    models = {"the demo's model": (asked.artifact, asked.checkpoint, asked.shapes)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_apart(Path(folder), "124M")
        bundle = Path(folder) / "gpt2"
        subprocess.run([*GPTEXPORT, "onnx", str(checkpoint), "-o", str(bundle), "--target", "cpu", "-q"], check=True)
        models["GPT-2 124M, target cpu"] = (bundle, checkpoint, shapes_of("1x1,1x128"))
        for name, (artifact, against, shapes) in models.items():
            rows, off = compared(artifact, against, shapes, asked.rounds)
            worst, data[name] = max(worst, off), rows
            lines += [f"## {name}", "", *table(("B×T", "", "bench, ms", "loop, ms", "bench beside the loop"), rows), ""]
    write(asked.out, [*lines, f"Worst: {worst:.1%} off; the limit is {LIMIT:.0%}."], data)
    return int(worst > LIMIT)


def compared(artifact: Path, checkpoint: Path, shapes: list[Shape], rounds: int) -> tuple[list[list[str]], float]:
    """Rows of a table, and the largest difference of both, relative to the loop."""
    bench: dict[Figure, list[float]] = defaultdict(list)
    loops: dict[Figure, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for timing in benched(artifact, checkpoint, shapes):
            bench[timing["name"], tuple(timing["shape"])].append(timing["warm"])
        for side, shape in bench:
            loops[side, shape].append(looped(side, artifact, checkpoint, shape))
    rows, worst = [], 0.0
    for figure in bench:
        told, found = statistics.median(bench[figure]), statistics.median(loops[figure])
        worst = max(worst, abs(told / found - 1))
        (side, (B, T)) = figure
        rows.append([f"{B}×{T}", side, f"{told * 1e3:.3g}", f"{found * 1e3:.3g}", f"{told / found - 1:+.1%}"])
    return rows, worst


def benched(artifact: Path, checkpoint: Path, shapes: list[Shape]) -> list[dict[str, Any]]:
    text = ",".join(f"{B}x{T}" for B, T in shapes)
    command = [*GPTEXPORT, "bench", str(artifact), "--against", str(checkpoint), "--shapes", text, "--json", "-q"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    timings: list[dict[str, Any]] = result["timings"]
    return timings


def looped(side: str, artifact: Path, checkpoint: Path, shape: Shape) -> float:
    """Median seconds of a call, warm, in a process of its own."""
    command = [sys.executable, "-c", LOOP, side, str(artifact), str(checkpoint), *map(str, shape)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
