"""What scripts.gpu.check does on the GPU, a part at a time. Each is a process of its own, which `check` starts:

    python -m scripts.gpu.parts PART FOLDER RESULT.json [--quick] [--on gpu|cpu|pretended]

What a part has found is in RESULT.json as soon as it is found, so that a part that is stopped has not been for nothing.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gptexport_runtime import Session
from gptexport_runtime.contract.heads import HEADS
from scripts.bench.tables import shapes_of, speed
from scripts.gpu.attention_kernel import run_and_read, unexpected
from scripts.gpu.beside import bench, tuned, xl
from scripts.gpu.generation import decode
from scripts.gpu.micro import micro
from scripts.gpu.part import Part
from scripts.gpu.prepare import prepare
from scripts.gpu.profiles import bytes_to_host, events_of
from scripts.gpu.setting import GPU, SETTINGS

ROOT = Path(__file__).parents[2]
# by file: what others import may be missing here, and one that cannot be collected would end it all
GPU_TESTS = (
    "tests/runtime/test_session.py",
    "tests/runtime/test_session_on_gpu.py",
    "tests/parity/test_gpu.py",
    "tests/engine/test_gpu.py",
)


def probe(part: Part) -> None:
    """Whether each of ONNX Runtime's providers runs here, with all its libraries."""
    from gptexport_runtime.backends.ort.probe import probe_providers

    probed = probe_providers()
    part.found(
        onnxruntime=probed.version,
        conflict=probed.conflict,
        runs={provider.device: provider.reason or provider.lacks or "yes" for provider in probed.providers},
    )
    if not any(provider.device == part.setting.device and provider.loads for provider in probed.providers):
        raise SystemExit(part.data["runs"].get(part.setting.device))


def kernels(part: Part) -> None:
    """Which attention kernels ran, by what ONNX Runtime says; what took the time, and what was copied, by CUPTI."""
    import torch

    from gptexport_runtime import CudaOptions, load
    from gptexport_runtime.contract.manifest import Manifest
    from gptexport_runtime.contract.names import MANIFEST_FILE

    said: dict[str, Any] = {}
    for dtype in part.setting.dtypes:
        bundle = part.bundle(dtype)
        expected = Manifest.from_json((bundle / MANIFEST_FILE).read_text()).expected_kernels
        runs = run_and_read(bundle, part.setting.shapes, part.setting.device)
        ran = Counter(f"{run.operator}: {run.kernel}" for run in runs)
        said[dtype] = {"ran": dict(ran), "unexpected": unexpected(runs, expected)}
        part.found(said=said)
    if part.setting.torch_device == "cuda":
        torch.zeros(1, device="cuda")  # before the session: the profiler must have seen the context
    longest: dict[str, Any] = {}
    copies: dict[str, Any] = {}
    launches: dict[str, int] = {}
    B, T = shapes_of(part.setting.shapes)[0]
    with load(part.bundle(part.setting.dtype), part.setting.device, cuda=CudaOptions(graphs=False)) as gpt:
        ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, (B, T))
        calls: dict[str, Callable[[], object]] = {
            f"logits {B}×{T}, left on the device": lambda: gpt.logits(ids, device_output=True),
            f"score {B}×{T}": lambda: gpt.score(ids),
            f"last_logits {B}×{T}": lambda: gpt.last_logits(ids),
            "logits 1×1, left on the device": lambda: gpt.logits(ids[:1, :1], device_output=True),
        }
        for name, call in calls.items():
            try:
                call()
            except Exception as error:
                copies[name] = {reason_of(error): 1}
                continue
            spent: Counter[str] = Counter()
            counted: Counter[str] = Counter()
            for event in events_of(call):
                if event.kind.startswith("gpu_memcpy"):
                    counted[event.name] += 1
                if event.kind in ("kernel", "gpu_memcpy", "gpu_memset"):
                    spent[event.name] += round(event.microseconds)
                    launches[name] = launches.get(name, 0) + 1
            total = sum(spent.values()) or 1
            longest[name] = [(time_ / total, kernel[:120]) for kernel, time_ in spent.most_common(12)]
            copies[name] = dict(counted)
            part.found(copies=copies, longest=longest, launches=launches)


def parity(part: Part) -> None:
    """Noise ratios of every dtype and every other head, against eager on the GPU; and float32 with TF32 in both."""
    import torch

    from gptexport.checkpoints import load_checkpoint
    from gptexport.parity import judge, measure_parity
    from gptexport.parity.measure.noise import allowed_change
    from gptexport.precision import PRECISIONS
    from gptexport_runtime import CudaOptions, load

    setting = part.setting
    shapes = shapes_of(setting.parity_shapes)
    checkpoint = load_checkpoint(str(part.folder / setting.dtypes[0] / "hf"))
    for dtype, tf32 in [*((dtype, False) for dtype in setting.dtypes), *([] if part.quick else [("float32", True)])]:
        label = f"{dtype} with TF32" if tf32 else dtype
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            with load(part.bundle(dtype), setting.device, cuda=CudaOptions(tf32=tf32)) as session:
                measured = measure_parity(session, checkpoint, shapes, precision=PRECISIONS[dtype])
                verdict = judge(measured)
                found: dict[str, Any] = {
                    "noise_ratio": verdict.noise_ratio,
                    "max_ratio": max((row.max_ratio for row in verdict.shapes), default=None),
                    "passed": bool(verdict),
                    "reasons": list(verdict.reasons),
                    "shapes": [{"shape": row.shape, "noise_ratio": row.noise_ratio} for row in verdict.shapes],
                    "heads": {},
                }
                part.found(**{label: found})
                if not tf32:
                    found["heads"] = heads_of(session, allowed_change(measured.stats, measured.precision))
                    found["passed"] &= all(row[2] for row in found["heads"].values())
                    part.found(**{label: found})
        except Exception as error:  # the other dtypes are still worth knowing
            part.found(**{label: {**part.data.get(label, {}), "passed": False, "reason": reason_of(error)}})


def heads_of(session: Session, allowed: float) -> dict[str, tuple[float | str, float, bool]]:
    """Of each head but the logits how far it is from its definition, or why it is not known; what is allowed; so it is.

    At a shape at which flash attention has several blocks, and with prompts, pieces and single tokens of `decode`.
    """
    from gptexport.parity.measure.heads import measure_heads

    T = min(session.config.block_size or 192, 192)
    ids = np.random.default_rng(2).integers(0, session.config.vocab_size, (4, T))
    found: dict[str, tuple[float | str, float, bool]] = {}
    for head in HEADS.values():
        try:
            for row in measure_heads(session, [head], [ids], allowed):
                found[head.name] = (row.max_change, row.allowed, row.passed)
        except Exception as error:
            found[head.name] = (reason_of(error), allowed, False)
    return found


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def score(part: Part) -> None:
    """Tokens a second of `score`, beside logits of the same that come to the host, an eighth of the rows at a time."""
    import torch

    from gptexport_runtime import load

    if part.setting.torch_device == "cuda":
        torch.zeros(1, device="cuda")  # before the session: the profiler must have seen the context
    B, T = part.setting.score_shape
    with load(part.bundle(part.setting.dtype), part.setting.device) as gpt:
        ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, (B, T))
        few = ids[: B // 8]
        out = np.zeros((*few.shape, gpt.config.vocab_size), np.float32)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "": (lambda: gpt.score(ids), ids.size),
            "host_": (lambda: gpt.logits(few, out=out), few.size),
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


def memory(part: Part) -> None:
    """Free memory of the GPU over calls of growing shapes, once every length has been there."""
    from gptexport_runtime import load
    from gptexport_runtime.backends.gpu.driver import load_driver

    free = load_driver().memory if part.setting.device == "cuda" else lambda: (0, 0)
    before = free()[0]
    calls = part.setting.growing_calls // (10 if part.quick else 1)
    with load(part.bundle(part.setting.dtype), part.setting.device) as gpt:
        longest = gpt.config.block_size or 1
        step = max(1, longest // 128)
        lengths = [*range(1, longest + 1, step)]
        taken = []
        for number in range(calls):
            gpt.logits(np.zeros((1, lengths[number % len(lengths)]), np.int64), device_output=True)
            if (number + 1) % len(lengths) == 0 or number + 1 == calls:
                taken.append(before - free()[0])
                part.found(calls=number + 1, taken=[taken[0], max(taken), taken[-1]])


def tests(part: Part) -> None:
    """`pytest -m gpu`."""
    report = part.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-q", "-rs", "--tb=short"]
    done = subprocess.run([*command, f"--junitxml={report}", *GPU_TESTS], cwd=ROOT, text=True, capture_output=True)
    print(done.stdout[-8000:], done.stderr[-2000:], file=sys.stderr)
    suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    wrong = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    reasons = sorted(set(re.findall(r"^SKIPPED \[\d+\] [^:]*:\d+: (.*)$", done.stdout, re.M)))
    counts = {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}
    part.found(**counts, failures=wrong, skip_reasons=reasons, tail=done.stdout[-3000:])


# in the order in which they are worth having
PARTS: dict[str, Callable[[Part], None]] = {
    "probe": probe,
    "prepare": prepare,
    "kernels": kernels,
    "micro": micro,
    "parity": parity,
    "score": score,
    "decode": decode,
    "bench": bench,
    "tuned": tuned,
    "xl": xl,
    "memory": memory,
    "tests": tests,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--on", choices=SETTINGS, default=GPU.name)
    args = parser.parse_args()
    PARTS[args.part](Part(args.folder, args.result, args.quick, SETTINGS[args.on]))


if __name__ == "__main__":
    main()
