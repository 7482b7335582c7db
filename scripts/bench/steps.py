"""What each step of `--target cpu` gives on its own, and where the rest of the time goes.

    python -m scripts.bench.steps --out docs/measurements/steps

The same weights without one of the steps, each a process of its own, in interleaved rounds; medians of paired ratios.
Then ONNX Runtime's own profile of the graph, by operation and by the width of what a MatMul reads. Random weights of
GPT-2 124M: speed does not depend on them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.bench.machine import sgemm_rate
from gptexport.export.rewrites import Audit, Rewrite
from gptexport.export.targets import CPU, PORTABLE, Target
from gptexport.precision import Precision
from gptexport.recipe import Limits, Recipe
from gptexport_runtime import Session, load
from gptexport_runtime.backends.ort.host import HostBinding
from gptexport_runtime.backends.ort.providers import PROVIDERS
from gptexport_runtime.backends.ort.providers.cpu import CPU as CPU_PROVIDER
from gptexport_runtime.contract.heads import LOGITS
from scripts.bench.models import SIZES, write_apart
from scripts.bench.tables import Shape, options, shapes_of, speed, table, write
from scripts.bench.workers import Measure, Seconds, interleave, module, parse_or_serve, running

WHOLE = "as it is"
BUNDLES = ("cpu", "narrow", "one_kernel")  # the targets of `target_of`
VARIANTS = {  # by name: the bundle; two differ in how it is run
    WHOLE: "cpu",
    "hidden layers not widened": "narrow",
    "never the flash kernel": "one_kernel",
    "all tokens at once": "cpu",
    "pages of 2 MB": "cpu",
}
UNLIMITED = 1 << 30
HUGE_PAGES = {"pages of 2 MB": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
EXPORT = "import sys; from scripts.bench.steps import export_bundle; export_bundle(*sys.argv[1:])"


def main() -> None:
    parser = options(__doc__, writes="OUT.md")
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--shapes", type=shapes_of, default="1x1,1x128,4x256,1x1024,8x512")
    args = parse_or_serve(parser, timed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.size)
        with running(module("scripts.bench.steps"), list(VARIANTS), folder, HUGE_PAGES) as workers:
            seconds, _ = interleave(workers.started, args.shapes, args.rounds)
        at_once = [(B, T) for B, T in args.shapes if CPU_PROVIDER.tokens_at_once >= B * T]
        profiled = {shape: profile(folder / "cpu" / "logits.onnx", shape) for shape in at_once}
    title = f"GPT-2 {args.size}, {os.cpu_count()} cores, {args.rounds} interleaved rounds."
    write(args.out, [title, "", *steps(seconds), "", widths(SIZES[args.size]), "", *profiles(profiled)])


def prepare(folder: Path, size: str) -> None:
    """The checkpoint, and its bundles without each of the steps, each written by a process that ends."""
    checkpoint = folder / "hf"
    checkpoint.mkdir()
    write_apart(checkpoint, size, "huggingface")
    for name in BUNDLES:
        command = [sys.executable, "-c", EXPORT, str(checkpoint), str(folder / name), name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def export_bundle(checkpoint: str, out: str, name: str) -> None:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export.pipeline import export

    export(load_checkpoint(checkpoint), Path(out), Recipe(target=target_of(name), heads=(LOGITS,)))


def target_of(name: str) -> Target:
    """The CPU's target: "cpu" with all steps, "narrow" without wide hidden layers, "one_kernel" without flash."""
    if name == "narrow":
        return replace(CPU, prepare=PORTABLE.prepare)
    return replace(CPU, rewrites=without_flash) if name == "one_kernel" else CPU


def without_flash(precision: Precision) -> list[Rewrite]:
    """The target's rewrites, with attention fused as if no row were long enough for the flash kernel."""
    from gptexport.export.rewrites.group_query_attention import FUSE_ATTENTION, fuse_attention

    def as_if_short(graph: ir.Graph, limits: Limits) -> Audit:
        return fuse_attention(graph, replace(limits, block_size=1))

    short = replace(FUSE_ATTENTION, apply=as_if_short)
    return [short if rewrite is FUSE_ATTENTION else rewrite for rewrite in CPU.rewrites(precision)]


def timed(name: str, folder: Path) -> Measure:
    """Seconds of a forward of a variant at (B,T), into a buffer that is used again. Short ones: a median."""
    if name == "all tokens at once":
        at_once = replace(CPU_PROVIDER, tokens_at_once=UNLIMITED, bind=lambda: HostBinding("cpu", UNLIMITED))
        PROVIDERS[PROVIDERS.index(CPU_PROVIDER)] = at_once
    session = load(folder / VARIANTS[name], "cpu")
    buffers: dict[Shape, np.ndarray] = {}

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


def steps(seconds: Seconds[Shape]) -> list[str]:
    names = [name for name in VARIANTS if name != WHOLE]
    rows = [
        [
            f"{B}×{T}",
            f"{1e3 * statistics.median(by_name[WHOLE]):,.1f} ms",
            *(f"{speed(by_name[name], by_name[WHOLE]):.2f} ×" for name in names),
        ]
        for (B, T), by_name in seconds.items()
    ]
    return table(["B×T", WHOLE, *(f"{name}: its speed" for name in names)], rows)


def widths(config: GPTConfig) -> str:
    """ONNX Runtime's product of 1024 rows at a width that falls on one cache set, and at one that does not."""
    rates = [
        f"{sgemm_rate(os.cpu_count() or 1, size=(1024, width, config.n_embd)) / 1e9:.0f} GFLOP/s at {width}"
        for width in (config.mlp_width, config.mlp_width + 16)
    ]
    return f"A product of (1024, width) and (width, {config.n_embd}): {', '.join(rates)}."


def profile(graph: Path, shape: Shape, rounds: int = 4) -> dict[str, float]:
    """Milliseconds a run at (B,T), by operation; a MatMul by the width of its left side."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.parent / "profile")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    ids = np.zeros(shape, np.int64)
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
    return spent


def profiles(by_shape: dict[Shape, dict[str, float]]) -> list[str]:
    """All that takes a millisecond anywhere, what takes longest at the last shape first."""
    last = list(by_shape.values())[-1]
    names = {name for spent in by_shape.values() for name, ms in spent.items() if ms > 1}
    ordered = sorted(names, key=lambda name: -last.get(name, 0.0))
    rows = [[name, *(f"{spent.get(name, 0.0):,.1f}" for spent in by_shape.values())] for name in ordered]
    return table(["ms, by ONNX Runtime's profile", *(f"{B}×{T}" for B, T in by_shape)], rows)


if __name__ == "__main__":
    main()
