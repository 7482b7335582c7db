"""On a machine with a GPU: the tests, parity and the benchmarks of gptexport there, and a dated report of them.

    python -m scripts.gpu.check --quick               # minutes: GPT-2 124M, without max-autotune and the XL shape
    python -m scripts.gpu.check                       # all
    python -m scripts.gpu.check --only parity,score   # some of: prepare tests bench score parity kernels decode xl
    python -m scripts.gpu.check --list                # what each needs and how long it may take

Before anything starts, everything that is needed and not there is named; exit code 4 then. A part that fails or takes
too long is reported, with what it had found, and the others go on. Exit code 0: every target that was measured is met;
3: one is missed. The report is docs/measurements/gpu-DATE.md and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.workers import module, versions
from scripts.gpu.parts import PARTS, ROOT
from scripts.gpu.report import MISSED, write_report

EXIT_MISSED, EXIT_UNAVAILABLE = 3, 4
XL_MEMORY = 24  # GB of the GPU that the XL shape's peers take together
PART = module("scripts.gpu.parts")
SHORTEST = 10  # seconds: what is left for a part below that is not worth beginning


@dataclass(frozen=True)
class Plan:
    """A part: what it needs, and the most seconds that it may take."""

    name: str
    needs: tuple[str, ...]
    seconds: int
    quick_seconds: int  # 0: left out by --quick


PLANS = (
    Plan("prepare", ("torch",), 240, 100),
    Plan("tests", ("torch", "cuda", "onnxruntime", "pytest"), 150, 100),
    Plan("bench", ("cuda", "onnxruntime"), 300, 120),
    Plan("score", ("onnxruntime",), 60, 45),
    Plan("parity", ("cuda", "onnxruntime"), 120, 60),
    Plan("kernels", ("cuda", "onnxruntime"), 60, 30),
    Plan("decode", ("onnxruntime",), 45, 30),
    Plan("xl", ("cuda", "onnxruntime", "memory"), 200, 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="parts, with commas between; `prepare` comes by itself where it is needed")
    parser.add_argument("--folder", type=Path, help="keep checkpoints and bundles here, for the next time")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements")
    parser.add_argument("--deadline", type=int, help="seconds for all of it  [default: 780; --quick: 420]")
    parser.add_argument("--list", action="store_true", help="the plan, and nothing else")
    args = parser.parse_args()
    plans = choose(args.only, quick=args.quick)
    if args.list:
        print("\n".join(f"{p.name:8} {seconds_of(p, args.quick):4} s  needs {', '.join(p.needs)}" for p in plans))
        return
    lacking = what_is_missing({need for plan in plans for need in plan.needs})
    if lacking:
        print("The GPU check cannot start here:", *(f"  {need}: {why}" for need, why in lacking.items()), sep="\n")
        raise SystemExit(EXIT_UNAVAILABLE)
    deadline = time.monotonic() + (args.deadline or (420 if args.quick else 780))
    results: dict[str, Any] = {}
    date, command = datetime.date.today().isoformat(), " ".join(["python -m scripts.gpu.check", *sys.argv[1:]])
    with kept(args.folder) as folder:
        for plan in plans:
            limit = min(seconds_of(plan, args.quick), deadline - time.monotonic())
            print(f"== {plan.name}, at most {max(limit, 0):.0f} s", file=sys.stderr, flush=True)
            results[plan.name] = run_part(plan.name, folder, limit, quick=args.quick)
            path, targets = write_report(args.out, results, machine(), command, date)  # after each: nothing is lost
    print(path.read_text())
    raise SystemExit(EXIT_MISSED if any(target.verdict == MISSED for target in targets) else 0)


def choose(only: str | None, *, quick: bool) -> list[Plan]:
    """The parts to run, in order; `prepare` where another needs its bundles."""
    names = list(PARTS) if only is None else only.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"{unknown[0]} is no part; expected some of {', '.join(PARTS)}.")
    if set(names) - {"tests"}:
        names.append("prepare")
    return [plan for plan in PLANS if plan.name in names and seconds_of(plan, quick)]


def seconds_of(plan: Plan, quick: bool) -> int:
    return plan.quick_seconds if quick else plan.seconds


def what_is_missing(needs: set[str]) -> dict[str, str]:
    """Of what is needed, what is not here, and why."""
    return {need: reason for need in sorted(needs) if (reason := CHECKS[need]()) is not None}


def _why_no_module(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"{name} is not installed: pip install {name}"


def _why_no_torch_cuda() -> str | None:
    if reason := _why_no_module("torch"):
        return reason
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA: install a build of torch that has"
    from gptexport_runtime.backends.gpu.device import why_no_gpu

    return why_no_gpu() or f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU it can use"


def _why_no_onnxruntime() -> str | None:
    from gptexport_runtime.backends.ort.providers import why_not
    from gptexport_runtime.errors import BackendUnavailableError

    try:
        return why_not("cuda")
    except BackendUnavailableError as error:
        return str(error)


def _why_no_memory() -> str | None:
    from gptexport_runtime.backends.gpu.driver import load_driver
    from gptexport_runtime.errors import GPTExportError

    try:
        free, total = load_driver().memory()
    except GPTExportError as error:
        return str(error)
    if free >= XL_MEMORY * 1e9:
        return None
    return (
        f"{free / 1e9:.0f} of {total / 1e9:.0f} GB are free; the XL shape takes {XL_MEMORY}. Leave it out with --only"
    )


CHECKS = {
    "torch": lambda: _why_no_module("torch"),
    "pytest": lambda: _why_no_module("pytest"),
    "cuda": _why_no_torch_cuda,
    "onnxruntime": _why_no_onnxruntime,
    "memory": _why_no_memory,
}


@contextlib.contextmanager
def kept(folder: Path | None) -> Iterator[Path]:
    """The caller's folder, or one that goes away."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def run_part(name: str, folder: Path, limit: float, *, quick: bool, command: Sequence[str] = PART) -> dict[str, Any]:
    """A part in a process of its own, ended with all that it started when its time is over.

    Returns: status ("ok", "failed", "stopped" or "not begun"), seconds, data as far as it came, and the reason.
    """
    if limit < SHORTEST:
        return {"status": "not begun", "seconds": 0.0, "data": {}, "reason": "no time was left; --deadline gives more"}
    result = folder / f"{name}.json"
    result.unlink(missing_ok=True)
    whole = [*command, name, str(folder), str(result), *(["--quick"] if quick else [])]
    began = time.monotonic()
    with (folder / f"{name}.log").open("w+") as log:
        process = subprocess.Popen(whole, stdout=log, stderr=log, start_new_session=True)
        status, reason = "ok", None
        try:
            if process.wait(timeout=limit):
                status = "failed"
        except subprocess.TimeoutExpired:
            status, reason = "stopped", f"it took more than {limit:.0f} s"
        with contextlib.suppress(ProcessLookupError):  # workers of a part that failed may still be there
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        lines = log.read().strip().splitlines()
    if status == "failed":
        reason = lines[-1][:500] if lines else f"exit code {process.returncode}"
        print("\n".join(lines[-30:]), file=sys.stderr)
    data = json.loads(result.read_text()) if result.exists() else {}
    return {"status": status, "seconds": time.monotonic() - began, "data": data, "reason": reason}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from gptexport_runtime.backends.gpu.device import find_gpu
    from gptexport_runtime.errors import BackendUnavailableError

    try:
        gpu = find_gpu()
        told = f"{gpu.name}, compute capability {gpu.compute_capability}; the driver runs CUDA up to {gpu.driver_cuda}"
    except BackendUnavailableError as error:  # `prepare` needs none
        told = str(error)
    asked = ["nvidia-smi", "--query-gpu=driver_version,memory.total,clocks.max.sm", "--format=csv,noheader", "--id=0"]
    try:
        smi = subprocess.run(asked, text=True, capture_output=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        smi = "nvidia-smi does not answer"
    packages = ("gptexport", "gptexport-runtime", "onnxruntime-gpu", "onnxruntime", "torch", "triton", "numpy", "onnx")
    return {
        "GPU": told,
        "driver, memory, clock": smi,
        "host": f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {value}" for name, value in versions(packages).items()),
    }


if __name__ == "__main__":
    main()
