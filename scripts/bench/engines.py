"""Time, memory and size of building engines with TensorRT for RTX, on any machine: no GPU is needed, and none is used.

    python -m scripts.bench.engines                                # GPT-2 124M, random weights: only shapes matter here
    python -m scripts.bench.engines --checkpoint demo/ckpt.pt      # a checkpoint of yours
    python -m scripts.bench.engines --ways                         # the same model as graphs that are written otherwise

Each row is `gptexport onnx` and then `gptexport trt`, several times, each a whole process: wall seconds from start to
end and peak resident memory, medians of --rounds. All engines of a row must have the same bytes. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from scripts.bench.models import write_apart
from scripts.bench.processes import GPTEXPORT, Run, median, run

TARGETS = ("8.9", "12.0")
DTYPES = ("float32", "float16", "bfloat16")
HEADER = (
    "model",
    "dtype",
    "build",
    "peak memory",
    "weights",
    "engine",
    "of it weights",
    "activations at B×T",
    "attention",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="default: GPT-2 124M with random weights")
    parser.add_argument("--max", default="8x1024", help="largest B×T; T is cut to the model's block_size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", action="store_true", help="compare ways of writing the graph")
    args = parser.parse_args()
    print(f"TensorRT for RTX {version('tensorrt_rtx')}, {platform.machine()}, {os.cpu_count()} cores, no GPU used;")
    print(f"targets {', '.join(TARGETS)}; profile 1x1 to {args.max}, opt 8x256; medians of {args.rounds}\n")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or str(write_apart(Path(folder), "124M"))
        if args.ways:
            print_ways(checkpoint, Path(folder), args.max)
            return
        print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
        name = "GPT-2 124M" if args.checkpoint is None else args.checkpoint
        for dtype in DTYPES:
            print(f"| {name} | {' | '.join(row(checkpoint, dtype, args.max, args.rounds))} |", flush=True)


def row(checkpoint: str, dtype: str, largest: str, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundle = folder / "gpt"
        run([*GPTEXPORT, "onnx", checkpoint, "-o", str(bundle), "--dtype", dtype, "--graphs", "logits", "-q"])
        block_size = json.loads((bundle / "gptexport.json").read_text())["model"]["block_size"]
        B, T = (int(dim) for dim in largest.split("x"))
        shapes = ["--opt", f"{B}x{min(256, T, block_size)}", "--max", f"{B}x{min(T, block_size)}"]
        targets = [word for target in TARGETS for word in ("--compute-capability", target)]
        engine = folder / "gpt.engine"
        command = [*GPTEXPORT, "trt", str(bundle), "-o", str(engine), "--backend", "tensorrt-rtx", *shapes, *targets]
        runs: list[Run] = []
        hashes: set[str] = set()
        for _ in range(max(rounds, 2)):
            runs.append(run([*command, "--force", "-q"]))
            info = json.loads(engine.with_name("gpt.engine.json").read_text())
            hashes.add(info["engine"]["sha256"])
        if len(hashes) != 1:
            raise SystemExit(f"{dtype}: two builds differ: {hashes}")
        fused = info["graph"]["fused_attention"]
        return [
            dtype,
            f"{median(runs).seconds:.1f} s",
            f"{median(runs).peak_mb / 1000:.2f} GB",
            megabytes((bundle / "weights.data").stat().st_size),
            megabytes(info["engine"]["bytes"]),
            megabytes(info["weight_bytes"]),
            f"{megabytes(info['activation_bytes'][0])} at {B}×{min(T, block_size)}",
            "one kernel, no scores" if fused else "scores in memory",
        ]


def print_ways(checkpoint: str, folder: Path, largest: str) -> None:
    """Engines of the graph at two opsets, as it was exported and as `gptexport trt` rewrites it."""
    from gptexport.engine import BuildOptions, make_profiles, open_library, open_source
    from gptexport.engine.build import Request, build_plan
    from gptexport.engine.prepare import prepare_graph

    library = open_library("tensorrt-rtx")
    B, T = (int(dim) for dim in largest.split("x"))
    print("| dtype | graph | engine | of it weights | activations |\n|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        for opset in (20, 23):
            bundle = folder / f"{dtype}-{opset}"
            options = ["--dtype", dtype, "--opset", str(opset), "--graphs", "logits", "-q"]
            run([*GPTEXPORT, "onnx", checkpoint, "-o", str(bundle), *options])
            source = open_source(bundle)
            profiles = make_profiles([], [], [(B, T)], block_size=source.block_size)
            for way, graph in (("as exported", source.graph), ("as built", prepare_graph(source.graph)[0])):
                request = Request(library, source, graph.SerializeToString(), profiles, TARGETS, BuildOptions())
                plan = build_plan(request, lambda _phase, _done: None)
                sizes = map(megabytes, (plan.data.nbytes, plan.weight_bytes, plan.activation_bytes[0]))
                print(f"| {dtype} | opset {opset}, {way} | {' | '.join(sizes)} |", flush=True)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
