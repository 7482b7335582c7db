"""What scripts.gpu.check does on the GPU, a part at a time. Each is a process of its own, which `check` starts:

    python -m scripts.gpu.parts PART FOLDER RESULT.json [--quick]

What a part has found is in RESULT.json as soon as it is found, so that a part that is stopped has not been for nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.models import SIZES, write_apart
from scripts.bench.processes import GPTEXPORT
from scripts.bench.tables import shapes_of, speed
from scripts.bench.workers import interleave, module, running
from scripts.gpu.profiles import bytes_to_host, events_of, graph_launches

ROOT = Path(__file__).parents[2]
DTYPES = ("float32", "float16", "bfloat16")
SMALL_SHAPES, XL_SHAPES = "8x1024,1x128,1x1", "4x1024"


@dataclass
class Part:
    """Where a part works, and what it has found."""

    folder: Path
    result: Path
    quick: bool
    data: dict[str, Any] = field(default_factory=dict)

    def found(self, **more: Any) -> None:
        self.data |= more
        self.result.write_text(json.dumps(self.data))

    def bundle(self, name: str) -> Path:
        return self.folder / name / "bundle"


@dataclass(frozen=True)
class Model:
    """A GPT-2 of random weights, and the bundles of it that the parts need."""

    size: str
    bundles: dict[str, str]  # by name of the folder, the dtype
    options: tuple[str, ...] = ()


SMALL = Model("124M", {dtype: dtype for dtype in DTYPES})
XL = Model("1558M", {"xl": "bfloat16"}, ("--graphs", "logits"))


def prepare(part: Part) -> None:
    """GPT-2 124M with random weights, and its bundles for CUDA in each dtype; the XL shape's in bfloat16."""
    models = [SMALL] if part.quick else [SMALL, XL]
    with ThreadPoolExecutor() as pool:
        sizes, errors = [model.size for model in models], list(pool.map(partial(export_model, part.folder), models))
    ended = dict(zip(sizes, errors, strict=True))
    part.found(**{size: error or "ok" for size, error in ended.items()})
    if any(errors):
        raise SystemExit("; ".join(f"{size}: {error}" for size, error in ended.items() if error))


def export_model(folder: Path, model: Model) -> str:
    """Write the checkpoint, then all its bundles at once. What is there already stays; the end of what failed."""
    checkpoint = folder / next(iter(model.bundles)) / "hf"
    if not (checkpoint / "config.json").exists():
        write_apart(checkpoint, model.size, "huggingface")
    exports = []
    for name, dtype in model.bundles.items():
        place = folder / name
        place.mkdir(exist_ok=True)
        if not (place / "hf").exists():
            (place / "hf").symlink_to(checkpoint)
        if not (place / "bundle").exists():
            command = [*GPTEXPORT, "onnx", str(checkpoint), "-o", str(place / "bundle"), "-q", "--target", "cuda"]
            command += ["--dtype", dtype, *model.options]
            exports.append(subprocess.Popen(command, text=True, stderr=subprocess.PIPE))
    ended = [(export.communicate()[1], export.returncode) for export in exports]
    return "; ".join(errors.strip()[-500:] for errors, code in ended if code)


def tests(part: Part) -> None:
    """`pytest -m gpu`."""
    report = part.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "--tb=short", f"--junitxml={report}"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)
    suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    wrong = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    counts = {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}
    part.found(**counts, failures=wrong, tail=done.stdout[-3000:])


def parity(part: Part) -> None:
    """Noise ratios of every dtype, against eager on the GPU in that dtype; float32 also with TF32 in both, labelled."""
    import torch

    from gptexport.checkpoints import load_checkpoint
    from gptexport.parity import judge, measure_parity
    from gptexport.precision import PRECISIONS
    from gptexport_runtime import CudaOptions, load

    shapes = [(1, 1), (3, 17), (1, 128)] if part.quick else [(1, 1), (3, 17), (1, 128), (2, 511), (2, 1024)]
    checkpoint = load_checkpoint(str(part.folder / DTYPES[0] / "hf"))
    for dtype, tf32 in [*((dtype, False) for dtype in DTYPES), ("float32", True)]:
        label = f"{dtype} with TF32" if tf32 else dtype
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            with load(part.bundle(dtype), "cuda", cuda=CudaOptions(tf32=tf32)) as session:
                verdict = judge(measure_parity(session, checkpoint, shapes, precision=PRECISIONS[dtype]))
        except Exception as error:  # the other dtypes are still worth knowing
            part.found(**{label: {"reason": f"{type(error).__name__}: {error}"[:500]}})
            continue
        ratios = [(row.noise_ratio, row.max_ratio) for row in verdict.shapes]
        worst = {"noise_ratio": max(n for n, _ in ratios), "max_ratio": max(m for _, m in ratios)}
        rows = [{"shape": row.shape, "noise_ratio": row.noise_ratio} for row in verdict.shapes]
        part.found(**{label: {**worst, "passed": bool(verdict), "reasons": list(verdict.reasons), "shapes": rows}})


def bench(part: Part) -> None:
    """GPT-2 124M in bfloat16, beside eager and torch.compile."""
    beside_torch(part, "bfloat16", SMALL, SMALL_SHAPES)


def xl(part: Part) -> None:
    """The shape of GPT-2 XL: 48 layers, 1600 wide, 25 heads."""
    from scripts.gpu.peers import OWN_PLAIN

    beside_torch(part, "xl", XL, XL_SHAPES, {OWN_PLAIN: "measured at 124M"})


def beside_torch(part: Part, name: str, model: Model, shapes: str, left_out: dict[str, str] | None = None) -> None:
    """Every peer at every shape, in interleaved rounds. `left_out`: peers that are not measured, and why."""
    from gptexport.architectures.gpt2 import forward_flops
    from scripts.gpu.peers import PEERS, TUNED

    part.found(matmul_flop_per_s=matmul_rate())
    folder = part.folder / name
    (folder / "shapes").write_text(shapes)
    left_out = {**(left_out or {}), **({TUNED: "left out by --quick"} if part.quick else {})}
    with running(module("scripts.gpu.peers"), [peer for peer in PEERS if peer not in left_out], folder) as workers:
        missing = {**workers.missing, **left_out}
        part.found(missing=missing)
        seconds, flops = {}, {}
        for B, T in shapes_of(shapes):
            measured, _ = interleave(workers.started, [(B, T)], 5 if part.quick else 11, missing)
            seconds[f"{B}x{T}"] = measured[B, T]
            flops[f"{B}x{T}"] = forward_flops(SIZES[model.size], B, T)
            part.found(seconds=seconds, flops=flops, missing=missing)


def matmul_rate(size: int = 8192, tries: int = 20) -> float:
    """FLOP/s of torch's bfloat16 product of two square matrices; the median."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    spent = []
    for _ in range(tries):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return 2.0 * size**3 / statistics.median(spent[tries // 4 :])


def score(part: Part) -> None:
    """Tokens a second of `score` 64×1024, beside logits of the same that come to the host, 8 rows at a time."""
    import numpy as np
    import torch

    from gptexport_runtime import load

    torch.zeros(1, device="cuda")  # before the session: the profiler must have seen the context
    with load(part.bundle("bfloat16"), "cuda") as gpt:
        ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, (64, 1024))
        out = np.zeros((8, 1024, gpt.config.vocab_size), np.float32)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "": (lambda: gpt.score(ids), ids.size),
            "host_": (lambda: gpt.logits(ids[:8], out=out), ids[:8].size),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}  # a token
        for number in range(-1, 3 if part.quick else 5):
            for name, (call, tokens) in calls.items():
                began = time.perf_counter()
                call()
                if number >= 0:
                    seconds[name].append((time.perf_counter() - began) / tokens)
        rates = {f"{name}tokens_per_s": 1 / statistics.median(each) for name, each in seconds.items()}
        part.found(speed_ratio=speed(seconds[""], seconds["host_"]), **rates)
        for name, (call, tokens) in calls.items():
            part.found(**{f"{name}bytes_per_token": bytes_to_host(events_of(call)) / tokens})


def decode(part: Part) -> None:
    """Seconds a token of one row and of eight, from captured graphs and without; and that graphs were replayed."""
    import torch

    from gptexport_runtime import CudaOptions, load

    torch.zeros(1, device="cuda")  # before the session: the profiler must have seen the context
    steps = 64
    spent: dict[str, float] = {}
    launches: dict[str, int] = {}
    for graphs in (None, False):
        with load(part.bundle("bfloat16"), "cuda", cuda=CudaOptions(graphs=graphs)) as gpt:
            for rows in (1, 8):
                label = f"{rows} rows, {'captured graphs' if graphs is None else 'no captured graphs'}"
                call = partial(gpt.generate, [[1] * 16] * rows, max_new_tokens=steps, temperature=0)
                for _ in range(2):
                    call()
                began = time.perf_counter()
                call()
                spent[label] = (time.perf_counter() - began) / steps
                launches[label] = graph_launches(events_of(call))
                part.found(seconds_per_token=spent, graph_launches=launches)


def kernels(part: Part) -> None:
    """Which kernels ran, attention's above all, and what was copied between host and device."""
    import numpy as np
    import torch

    from gptexport_runtime import CudaOptions, load

    torch.zeros(1, device="cuda")  # before the session: the profiler must have seen the context
    longest: dict[str, Any] = {}
    copies: dict[str, Any] = {}
    attention: set[str] = set()
    with load(part.bundle("bfloat16"), "cuda", cuda=CudaOptions(graphs=False)) as gpt:
        ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, (4, 1024))
        calls: dict[str, Callable[[], object]] = {
            "logits 4×1024, left on the device": lambda: gpt.logits(ids, device_output=True),
            "score 4×1024": lambda: gpt.score(ids),
            "last_logits 4×1024": lambda: gpt.last_logits(ids),
        }
        for name, call in calls.items():
            call()
            spent: Counter[str] = Counter()
            counted: Counter[str] = Counter()
            for event in events_of(call):
                if event.kind.startswith("gpu_memcpy"):
                    counted[event.name] += 1
                if event.kind in ("kernel", "gpu_memcpy", "gpu_memset"):
                    spent[event.name] += round(event.microseconds)
            total = sum(spent.values()) or 1
            longest[name] = [(time_ / total, kernel[:120]) for kernel, time_ in spent.most_common(8)]
            copies[name] = dict(counted)
            attention |= {kernel[:120] for kernel in spent if re.search(r"flash|fmha|attention|sdpa", kernel, re.I)}
            part.found(attention=sorted(attention), copies=copies, longest=longest)


PARTS: dict[str, Callable[[Part], None]] = {
    "prepare": prepare,
    "tests": tests,
    "bench": bench,
    "score": score,
    "parity": parity,
    "kernels": kernels,
    "decode": decode,
    "xl": xl,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    PARTS[args.part](Part(args.folder, args.result, args.quick))


if __name__ == "__main__":
    main()
