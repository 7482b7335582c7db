"""Full logits of GPT-2 beside every peer, in one interleaved run on this machine's CPU.

    make peers                                        # an environment of its own, .venv-peers
    .venv-peers/bin/python scripts/bench_peers.py --out docs/measurements/cpu

Each peer is a process of its own, so that nobody's spinning threads or memory are somebody else's. In every round each
runs once, in turn, with the others idle; ratios are taken within rounds, medians over them. A peer that is not
installed, or fails, is named with the reason. Random weights of GPT-2's size: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from bench_export import CONFIGS

from gptexport.bench import forward_flops
from gptexport.config import GPTConfig

# CTranslate2's converter insists on a tokenizer of the model's size
CONVERT = """
import json, sys
from pathlib import Path
import ctranslate2, tokenizers, transformers

folder, out = sys.argv[1:]
V = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{i}": i for i in range(V)}, unk_token="t0"))
names = {"unk_token": "t0", "bos_token": "t0", "eos_token": "t0"}
transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
ctranslate2.converters.TransformersConverter(folder).convert(out)
"""

Run = Callable[[np.ndarray], object]
PAUSE = 0.05  # seconds between runs, for the threads of the one before to go to sleep


def gptexport_bundle(folder: Path, bundle: str) -> Run:
    from gptexport_runtime import load

    gpt = load(folder / bundle, "cpu")
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    def run(ids: np.ndarray) -> object:
        shape = (*ids.shape, gpt.config.vocab_size)
        if shape not in buffers:
            buffers.clear()
            buffers[shape] = np.empty(shape, np.float32)
        return gpt.logits(ids, out=buffers[shape])

    return run


def eager(folder: Path, compiled: bool = False) -> Run:
    import torch

    from gptexport.checkpoints import load_checkpoint

    torch.set_num_threads(os.cpu_count() or 1)
    model = load_checkpoint(str(folder / "hf")).model
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]

    def run(ids: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(ids))

    return run


def openvino(folder: Path) -> Run:
    import openvino as ov

    model = ov.Core().compile_model(str(folder / "opset20.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = model.create_infer_request()
    return lambda ids: request.infer([ids], share_outputs=True)


def ctranslate2(folder: Path, compute_type: str) -> Run:
    import ctranslate2 as ct2

    generator = ct2.Generator(
        str(folder / "ct2"), device="cpu", compute_type=compute_type, intra_threads=os.cpu_count()
    )

    def run(ids: np.ndarray) -> object:
        tokens = ct2.StorageView.from_array(ids.astype(np.int32))
        lengths = ct2.StorageView.from_array(np.full(len(ids), ids.shape[1], np.int32))
        return np.asarray(generator.forward_batch(tokens, lengths))

    return run


PEERS: dict[str, Callable[[Path], Run]] = {
    "gptexport portable": lambda folder: gptexport_bundle(folder, "portable"),
    "gptexport cpu": lambda folder: gptexport_bundle(folder, "cpu"),
    "gptexport int8": lambda folder: gptexport_bundle(folder, "int8"),
    "eager": eager,
    "torch.compile": lambda folder: eager(folder, compiled=True),
    "OpenVINO": openvino,
    "CTranslate2": lambda folder: ctranslate2(folder, "float32"),
    "CTranslate2 int8": lambda folder: ctranslate2(folder, "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CONFIGS, default="124M")
    parser.add_argument("--shapes", default="1x1,1x128,4x256,1x1024")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="some of: " + ", ".join(PEERS))
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker[0], Path(args.worker[1]))
        return
    shapes = [(int(B), int(T)) for B, T in (shape.split("x") for shape in args.shapes.split(","))]
    names = args.only.split(",") if args.only else list(PEERS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.size)
        workers, missing = start(names, folder)
        seconds, peaks = interleave(workers, shapes, args.rounds)
    report = summarize(seconds, peaks, missing, CONFIGS[args.size], args)
    print(report["markdown"])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(str(report.pop("markdown")) + "\n")
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


def prepare(folder: Path, size: str) -> None:
    """The same random weights in everybody's format, each written by a process that ends."""
    here = Path(__file__).parent
    cli = [sys.executable, "-m", "gptexport", "onnx", str(folder / "hf"), "-q", "-o"]
    (folder / "hf").mkdir()
    steps = [
        [
            sys.executable,
            str(here / "bench_export.py"),
            "--size",
            size,
            "--format",
            "huggingface",
            "--write",
            str(folder / "hf"),
        ],
        [*cli, str(folder / "portable")],
        [*cli, str(folder / "cpu"), "--target", "cpu"],
        [*cli, str(folder / "int8"), "--target", "cpu", "--quantize", "int8"],
        [*cli, str(folder / "opset20.onnx"), "--opset", "20"],
        [sys.executable, "-c", CONVERT, str(folder / "hf"), str(folder / "ct2")],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            print(f"{' '.join(step[-4:])} failed: {done.stderr.strip()[-300:]}", file=sys.stderr)


def work(name: str, folder: Path) -> None:
    """One peer: a line `B T` in, a line with seconds and peak MB out."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is not an answer
    try:
        run = PEERS[name](folder)
        print("ready", file=answers)
    except Exception as error:
        print(f"missing {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=answers)
        return
    vocab_size = json.loads((folder / "hf" / "config.json").read_text())["vocab_size"]
    for line in sys.stdin:
        B, T = map(int, line.split())
        ids = np.random.default_rng(0).integers(0, vocab_size, (B, T))
        began = time.perf_counter()
        run(ids)
        spent = time.perf_counter() - began
        print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=answers)


def start(names: list[str], folder: Path) -> tuple[dict[str, subprocess.Popen[str]], dict[str, str]]:
    workers, missing = {}, {}
    for name in names:
        command = [sys.executable, __file__, "--worker", name, str(folder)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert worker.stdout is not None
        answer = worker.stdout.readline().strip()
        if answer == "ready":
            workers[name] = worker
        else:
            missing[name] = answer.removeprefix("missing ") or "it ended without a word"
            print(f"{name}: {missing[name]}", file=sys.stderr)
    return workers, missing


def interleave(
    workers: dict[str, subprocess.Popen[str]], shapes: list[tuple[int, int]], rounds: int
) -> tuple[dict[tuple[int, int], dict[str, list[float]]], dict[str, float]]:
    """Seconds by shape and peer, a list over rounds, and each peer's peak memory in MiB."""
    seconds: dict[tuple[int, int], dict[str, list[float]]] = {}
    peaks: dict[str, float] = {}
    for shape in shapes:
        seconds[shape] = {name: [] for name in workers}
        for number in range(-1, rounds):
            print(f"\r{shape[0]}x{shape[1]}: round {number + 1} of {rounds}   ", end="", file=sys.stderr, flush=True)
            for name, worker in workers.items():
                time.sleep(PAUSE)
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write(f"{shape[0]} {shape[1]}\n")
                answer = worker.stdout.readline().split()
                if len(answer) != 2:
                    raise SystemExit(f"{name} failed at {shape[0]}x{shape[1]}; leave it out with --only")
                peaks[name] = float(answer[1])
                if number >= 0:
                    seconds[shape][name].append(float(answer[0]))
    print(file=sys.stderr)
    return seconds, peaks


def summarize(
    seconds: dict[tuple[int, int], dict[str, list[float]]],
    peaks: dict[str, float],
    missing: dict[str, str],
    config: GPTConfig,
    args: argparse.Namespace,
) -> dict[str, object]:
    versions = {name: _version(name) for name in ("gptexport", "onnxruntime", "torch", "openvino", "ctranslate2")}
    lines = [
        f"GPT-2 {args.size}, {os.cpu_count()} {platform.machine()} cores, {args.rounds} interleaved rounds.",
        "Median milliseconds; in brackets the speed relative to eager, median of paired ratios.",
        ", ".join(f"{name} {value}" for name, value in versions.items() if value) + ".",
        "",
        "| B×T | " + " | ".join(peaks) + " |",
        "|---" * (len(peaks) + 1) + "|",
    ]
    data: list[dict[str, object]] = []
    for (B, T), by_name in seconds.items():
        cells = []
        base = by_name.get("eager")
        for name, each in by_name.items():
            ratio = statistics.median(b / s for b, s in zip(base, each, strict=True)) if base else None
            median = statistics.median(each)
            cells.append(f"{1e3 * median:.0f}" + (f" ({ratio:.2f}×)" if ratio is not None else ""))
            flops = forward_flops(config, B, T) / median
            data.append({"B": B, "T": T, "name": name, "seconds": each, "speed_vs_eager": ratio, "flop_per_s": flops})
        lines.append(f"| {B}×{T} | " + " | ".join(cells) + " |")
    lines.append("| peak MB | " + " | ".join(f"{peak * 1.048576:.0f}" for peak in peaks.values()) + " |")
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in missing.items()]
    return {"versions": versions, "missing": missing, "peak_mib": peaks, "timings": data, "markdown": "\n".join(lines)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
