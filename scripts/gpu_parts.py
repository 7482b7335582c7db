"""What gpu_check.py does on the GPU, a part at a time. Each is a process of its own, started by gpu_check.py:

    python scripts/gpu_parts.py PART FOLDER RESULT.json [--quick]

What a part has found is in RESULT.json as soon as it is found, so that a part that is stopped has not been for nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
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


def prepare(part: Part) -> None:
    """GPT-2 124M with random weights, and its bundles for CUDA in each dtype; the XL shape's in bfloat16."""
    running = {"124M": _write_and_export(part, "124M", DTYPES)}
    if not part.quick:
        running["xl"] = _write_and_export(part, "1558M", ("bfloat16",), name="xl", graphs="logits")
    for name, process in running.items():
        _, errors = process.communicate()
        part.found(**{name: "ok" if process.returncode == 0 else errors.strip()[-500:]})
    if any(told != "ok" for told in part.data.values()):
        raise SystemExit("; ".join(f"{name}: {told}" for name, told in part.data.items() if told != "ok"))


def _write_and_export(
    part: Part, size: str, dtypes: tuple[str, ...], name: str = "", graphs: str | None = None
) -> subprocess.Popen[str]:
    """A shell that writes the checkpoint and then exports it in every dtype, those at once."""
    places = [part.folder / (name or dtype) for dtype in dtypes]
    first = places[0] / "hf"
    first.mkdir(parents=True, exist_ok=True)
    script = f"set -e\n[ -e {first}/config.json ] || {sys.executable} {HERE / 'bench_export.py'} --size {size}"
    script += f" --format huggingface --write {first}\n"
    for place, dtype in zip(places, dtypes, strict=True):
        script += f"mkdir -p {place}; [ -e {place}/hf ] || ln -s {first} {place}/hf\n"
        more = f"--graphs {graphs}" if graphs else ""
        script += f"[ -e {place}/bundle ] || {sys.executable} -m gptexport onnx {first} -o {place}/bundle -q"
        script += f" --target cuda --dtype {dtype} {more} &\n"
    script += "for job in $(jobs -p); do wait $job; done\n"
    return subprocess.Popen(["bash", "-c", script], text=True, stderr=subprocess.PIPE)


def tests(part: Part) -> None:
    """`pytest -m gpu`."""
    report = part.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "--tb=short", f"--junitxml={report}"]
    done = subprocess.run(command, cwd=HERE.parent, text=True, capture_output=True)
    print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)
    suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
    total, failed = int(suite.get("tests", 0)), int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    wrong = [f"{case.get('classname')}::{case.get('name')}" for case in suite.iter("testcase") if _failed(case)]
    part.found(
        passed=total - failed - skipped, failed=failed, skipped=skipped, failures=wrong, tail=done.stdout[-3000:]
    )


def _failed(case: xml.etree.ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def parity(part: Part) -> None:
    """Noise ratios of every dtype, against eager on the GPU in that dtype; float32 also with TF32 in both, labelled."""
    import torch

    from gptexport.checkpoints import load_checkpoint
    from gptexport.parity import measure_parity
    from gptexport_runtime import CudaOptions, load

    shapes = [(1, 1), (3, 17), (1, 128)] if part.quick else [(1, 1), (3, 17), (1, 128), (2, 511), (2, 1024)]
    checkpoint = load_checkpoint(str(part.folder / DTYPES[0] / "hf"))
    for dtype, tf32 in [*((dtype, False) for dtype in DTYPES), ("float32", True)]:
        label = f"{dtype} with TF32" if tf32 else dtype
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            with load(part.bundle(dtype), "cuda", cuda=CudaOptions(tf32=tf32)) as session:
                verdict = measure_parity(session, checkpoint, shapes, dtype=dtype).judge()
        except Exception as error:  # the other dtypes are still worth knowing
            part.found(**{label: {"reason": f"{type(error).__name__}: {error}"[:500]}})
            continue
        ratios = [(row.noise_ratio, row.max_ratio) for row in verdict.shapes]
        worst = {"noise_ratio": max(n for n, _ in ratios), "max_ratio": max(m for _, m in ratios)}
        rows = [{"shape": row.shape, "noise_ratio": row.noise_ratio} for row in verdict.shapes]
        part.found(**{label: {**worst, "passed": bool(verdict), "reasons": list(verdict.reasons), "shapes": rows}})


def bench(part: Part) -> None:
    """GPT-2 124M in bfloat16, beside eager and torch.compile."""
    _bench(part, "bfloat16", "124M", SMALL_SHAPES)


def xl(part: Part) -> None:
    """The shape of GPT-2 XL: 48 layers, 1600 wide, 25 heads."""
    _bench(part, "xl", "1558M", XL_SHAPES)


def _bench(part: Part, name: str, size: str, shapes: str) -> None:
    from bench_export import CONFIGS
    from gpu_peers import OWN_PLAIN, PEERS, TUNED
    from workers import interleave, start

    from gptexport.bench import forward_flops

    part.found(matmul_flop_per_s=matmul_rate())
    folder = part.folder / name
    (folder / "shapes").write_text(shapes)
    left_out = {TUNED: "left out by --quick"} if part.quick else {}
    names = [peer for peer in PEERS if peer not in left_out and not (name == "xl" and peer == OWN_PLAIN)]
    workers, missing = start(str(HERE / "gpu_peers.py"), names, folder)
    part.found(missing={**missing, **left_out})
    cases = [(int(B), int(T)) for B, T in (shape.split("x") for shape in shapes.split(","))]
    seconds, flops = {}, {}
    for B, T in cases:
        measured, _ = interleave(workers, [(B, T)], 5 if part.quick else 11, missing)
        seconds[f"{B}x{T}"] = measured[B, T]
        flops[f"{B}x{T}"] = forward_flops(CONFIGS[size], B, T)
        part.found(seconds=seconds, flops=flops, missing={**missing, **left_out})
    for worker in workers.values():
        worker.terminate()


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

    from gptexport_runtime import load
    from gptexport_runtime.backends.gpu.memory import CudaPlace

    brought = [0]
    download = CudaPlace.download

    def counting(self: CudaPlace, address: int, out: Any) -> None:
        brought[0] += out.nbytes
        download(self, address, out)

    CudaPlace.download = counting  # type: ignore[method-assign]
    with load(part.bundle("bfloat16"), "cuda") as gpt:
        ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, (64, 1024))
        out = np.zeros((8, 1024, gpt.config.vocab_size), np.float32)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "": (lambda: gpt.score(ids), ids.size),
            "host_": (lambda: gpt.logits(ids[:8], out=out), ids[:8].size),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(-1, 3 if part.quick else 5):
            for name, (call, tokens) in calls.items():
                brought[0] = 0
                began = time.perf_counter()
                call()
                spent = (time.perf_counter() - began) / tokens
                if number >= 0:
                    seconds[name].append(spent)
                part.data |= {f"{name}bytes_per_token": brought[0] / tokens}
        ratio = statistics.median(b / a for a, b in zip(seconds[""], seconds["host_"], strict=True))
        rates = {f"{name}tokens_per_s": 1 / statistics.median(each) for name, each in seconds.items()}
        part.found(speed_ratio=ratio, **rates)


def decode(part: Part) -> None:
    """Milliseconds a token of one row and of eight, from CUDA graphs and without."""
    from gptexport_runtime import CudaOptions, load

    for graphs in (None, False):
        with load(part.bundle("bfloat16"), "cuda", cuda=CudaOptions(graphs=graphs)) as gpt:
            for rows in (1, 8):
                prompts, steps = [[1] * 16] * rows, 64
                for _ in range(2):
                    gpt.generate(prompts, max_new_tokens=steps, temperature=0)
                began = time.perf_counter()
                gpt.generate(prompts, max_new_tokens=steps, temperature=0)
                label = f"{rows} rows, {'CUDA graphs where they can be' if graphs is None else 'no CUDA graphs'}"
                part.found(**{label: (time.perf_counter() - began) / steps})
            made = gpt._graph("decode").bound._made
            part.found(**{f"graphs made ({graphs})": made})


def kernels(part: Part) -> None:
    """Which kernels ran, attention's above all, and what was copied between host and device: from CUPTI, by torch."""
    import numpy as np
    import torch
    from torch.profiler import ProfilerActivity, profile

    from gptexport_runtime import CudaOptions, load

    os.environ["ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"] = "1"
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
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                call()
                torch.cuda.synchronize()
            spent: Counter[str] = Counter()
            counted: Counter[str] = Counter()
            for event in profiled.events():
                if event.name.startswith("Memcpy"):
                    counted[event.name] += 1
                spent[event.name] += event.device_time_total
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
