"""Time and memory of an export at GPT-2's size, and of the runtime's start. Random weights: only shapes matter here.

    python -m scripts.bench.export                       # 124M, in a temporary folder
    python -m scripts.bench.export --format huggingface --rounds 5

Every figure is of a whole process: wall seconds from its start to its end, and its peak resident memory. Medians.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from scripts.bench.models import FORMATS, SIZES, write_apart
from scripts.bench.processes import GPTEXPORT, Run, median, run

FIRST_LOGITS = """
import sys
from gptexport_runtime import load
with load(sys.argv[1], device="cpu") as gpt:
    gpt.logits([[464, 3797, 3332, 319, 262, 2603, 11, 290]]) if gpt.config.vocab_size > 4000 else gpt.logits([[1] * 8])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--format", choices=FORMATS, default="nanogpt")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    weights = 4 * SIZES[args.size].parameters
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_apart(Path(folder), args.size, args.format)
        bundle = str(Path(folder) / "bundle")
        commands = {
            "gptexport --help": [*GPTEXPORT, "--help"],
            "export": [*GPTEXPORT, "onnx", str(checkpoint), "-o", bundle, "--force", "-q"],
            "start to first logits, 1x8": [sys.executable, "-c", FIRST_LOGITS, bundle],
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        run(commands["export"])  # the bundle must be there; and the disk cache warm
        for _ in range(args.rounds):
            for name, command in commands.items():
                runs[name].append(run(command))
    machine = f"torch {version('torch')}, {os.cpu_count()} cores"
    print(f"{args.size}, {args.format}, weights {weights / 1e6:.0f} MB, {machine}")
    for name, each in runs.items():
        found = median(each)
        ratio = found.peak_mb * 1e6 / weights
        print(f"{name:28} {found.seconds:7.2f} s   peak {found.peak_mb:7.0f} MB = {ratio:.2f} × the weights")


if __name__ == "__main__":
    main()
