"""What each step of `--target cpu` gives on its own, and where the rest of the time goes.

    python scripts/bench_steps.py --out docs/measurements/steps

The same weights without one of the steps, each a process of its own, in interleaved rounds; medians of paired ratios.
Then ONNX Runtime's own profile of the graph, by operation and by the width of what a MatMul reads. Random weights of
GPT-2 124M: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from bench_export import CONFIGS
from workers import Measure, interleave, serve, start

from gptexport.bench import sgemm_rate
from gptexport_runtime import Session, load
from gptexport_runtime.backends.ort import graph as ort

SIZE = "124M"
WHOLE = "as it is"
WITHOUT = {  # by bundle: the exporter's step that is left out, as Python
    "cpu": "pass",
    "narrow": "export.widen_hidden = lambda _trace: {}",
    "one_kernel": "cpu.SHORT = 1 << 30",
}
VARIANTS = {  # by name: the bundle; two differ in how it is run
    WHOLE: "cpu",
    "hidden layers not widened": "narrow",
    "never the flash kernel": "one_kernel",
    "all tokens at once": "cpu",
    "pages of 2 MB": "cpu",
}
HUGE_PAGES = {"pages of 2 MB": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
EXPORT = """
import sys
from pathlib import Path
from gptexport.checkpoints import load_checkpoint
from gptexport.export import cpu, export, export_onnx
{step}
export_onnx(load_checkpoint(sys.argv[1]), Path(sys.argv[2]), target="cpu", graphs=["logits"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1x1,1x128,4x256,1x1024,8x512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write OUT.md")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: timed(args.worker[0], Path(args.worker[1])))
        return
    shapes = [(int(B), int(T)) for B, T in (shape.split("x") for shape in args.shapes.split(","))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        workers, _ = start(__file__, list(VARIANTS), folder, HUGE_PAGES)
        seconds, _ = interleave(workers, shapes, args.rounds)
        for worker in workers.values():
            worker.kill()
        lines = [f"GPT-2 {SIZE}, {os.cpu_count()} cores, {args.rounds} interleaved rounds.", "", *steps(seconds)]
        lines += ["", *widths(), "", *profile(folder, [(B, T) for B, T in shapes if B * T <= ort.TOKENS_AT_ONCE])]
    print("\n".join(lines))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def prepare(folder: Path) -> None:
    writer = Path(__file__).with_name("bench_export.py")
    checkpoint = folder / "hf"
    checkpoint.mkdir()
    python = [sys.executable]
    for command in (
        [*python, str(writer), "--size", SIZE, "--format", "huggingface", "--write", str(checkpoint)],
        *(
            [*python, "-c", EXPORT.format(step=step), str(checkpoint), str(folder / name)]
            for name, step in WITHOUT.items()
        ),
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(name: str, folder: Path) -> Measure:
    """Seconds of a forward of a variant at (B,T), into a buffer that is used again. Short ones: a median."""
    if name == "all tokens at once":
        ort.TOKENS_AT_ONCE = 1 << 30
    session = load(folder / VARIANTS[name], "cpu")
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    def measure(B: int, T: int) -> float:
        ids = np.random.default_rng(0).integers(0, session.config.vocab_size, (B, T))
        if (B, T) not in buffers:
            buffers.clear()
            buffers[B, T] = np.empty((B, T, session.config.vocab_size), np.float32)
        return statistics.median(call(session, ids, buffers[B, T]) for _ in range(max(1, 32 // (B * T)) | 1))

    return measure


def call(session: Session, ids: np.ndarray, out: np.ndarray) -> float:
    began = time.perf_counter()
    session.logits(ids, out=out)
    return time.perf_counter() - began


def steps(seconds: dict[tuple[int, int], dict[str, list[float]]]) -> list[str]:
    names = [name for name in VARIANTS if name != WHOLE]
    lines = [
        f"| B×T | {WHOLE} | " + " | ".join(f"{name}: its speed" for name in names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for (B, T), by_name in seconds.items():
        whole = by_name[WHOLE]
        ratios = [statistics.median(w / s for w, s in zip(whole, by_name[name], strict=True)) for name in names]
        lines.append(
            f"| {B}×{T} | {1e3 * statistics.median(whole):,.1f} ms | " + " | ".join(f"{r:.2f} ×" for r in ratios) + " |"
        )
    return lines


def widths() -> list[str]:
    """ONNX Runtime's product of 1024 rows at a width that falls on one cache set, and at one that does not."""
    config = CONFIGS[SIZE]
    rates = [
        f"{sgemm_rate(os.cpu_count() or 1, size=(1024, width, config.n_embd)) / 1e9:.0f} GFLOP/s at {width}"
        for width in (config.mlp_width, config.mlp_width + 16)
    ]
    return [f"A product of (1024, width) and (width, {config.n_embd}): {', '.join(rates)}."]


def profile(folder: Path, shapes: list[tuple[int, int]], rounds: int = 4) -> list[str]:
    """Milliseconds a run, by operation; a MatMul by the width of its left side."""
    import onnxruntime

    columns: dict[str, dict[str, float]] = {}
    for B, T in shapes:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        graph = str(folder / "cpu" / "logits.onnx")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        ids = np.random.default_rng(0).integers(0, 50257, (B, T))
        for _ in range(rounds):
            session.run(None, {"input_ids": ids})
        spent: dict[str, float] = defaultdict(float)
        for event in json.loads(Path(session.end_profiling()).read_text()):
            kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
            if kernel and event["args"]["op_name"] != "If":  # whose time is that of what is in it
                name = event["args"]["op_name"]
                if "MatMul" in name:
                    name += f" of {next(iter(event['args']['input_type_shape'][0].values()))[-1]}"
                spent[name] += event["dur"] / 1e3 / rounds
        columns[f"{B}×{T}"] = spent
    last = list(columns.values())[-1]
    names = sorted({n for c in columns.values() for n, ms in c.items() if ms > 1}, key=lambda n: -last[n])
    lines = ["| ms, by ONNX Runtime's profile | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{c[name]:,.1f}" for c in columns.values()) + " |" for name in names]


if __name__ == "__main__":
    main()
