"""On a machine with a GPU: whether gptexport runs there, is right, and how fast it is; with a dated report.

    python -m scripts.gpu.check                       # as much as fits into 540 s; again for what is not done yet
    python -m scripts.gpu.check --quick               # fewer rounds, without max-autotune and the XL shape
    python -m scripts.gpu.check --only parity,score   # these parts, also if they are done
    python -m scripts.gpu.check --list                # the parts, what each needs and how long it may take
    python -m scripts.gpu.check --on cpu              # the check itself, tried with a tiny model: no figure counts

Before anything starts, everything that is needed and not there is named; exit code 4 then. A part that fails or takes
too long is reported, with what it had found, and the others go on. Exit code 0: every target that was measured is met;
3: one is missed. The report is gpu-DATE.md and .json in --out, and the parts' logs beside it; a part that another
command of the day has done, on the same machine with the same versions, stays in it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.workers import module, versions
from scripts.gpu.parts import PARTS, ROOT
from scripts.gpu.report import MISSED, read_results, report_of, write_report
from scripts.gpu.setting import GPU, SETTINGS

EXIT_MISSED, EXIT_UNAVAILABLE = 3, 4
DEADLINE = 540  # seconds: a command on a machine that is lent may take ten minutes
XL_MEMORY = 24  # GB of the GPU that the XL shape's peers take together
PART = module("scripts.gpu.parts")
PACKAGES = (
    *("gptexport", "gptexport-runtime", "onnxruntime-gpu", "onnxruntime", "torch", "triton", "transformers", "numpy"),
    *("onnx", "onnx-ir", "onnxscript", "nvidia-cublas", "nvidia-cudnn-cu13"),
)
SHORTEST = 10  # seconds: what is left for a part below that is not worth beginning


@dataclass(frozen=True)
class Plan:
    """A part: what it needs, and the most seconds that it may take."""

    name: str
    needs: tuple[str, ...]
    seconds: int
    quick_seconds: int  # 0: left out by --quick


PLANS = (
    Plan("probe", ("onnxruntime",), 100, 100),
    Plan("prepare", ("torch", "gptexport"), 200, 150),
    Plan("kernels", ("cuda", "onnxruntime"), 90, 60),
    Plan("micro", ("cuda", "onnxruntime"), 120, 90),
    Plan("parity", ("cuda", "onnxruntime"), 240, 150),
    Plan("score", ("onnxruntime",), 60, 45),
    Plan("decode", ("onnxruntime",), 150, 100),
    Plan("bench", ("cuda", "onnxruntime"), 420, 300),
    Plan("tuned", ("cuda", "onnxruntime"), 530, 0),
    Plan("xl", ("cuda", "onnxruntime", "memory"), 530, 0),
    Plan("memory", ("onnxruntime",), 120, 30),
    Plan("tests", ("torch", "cuda", "onnxruntime", "pytest"), 170, 100),
)


def main() -> None:
    args = arguments()
    plans = choose(args.only, quick=args.quick)
    if args.list:
        print("\n".join(f"{p.name:8} {seconds_of(p, args.quick):4} s  needs {', '.join(p.needs)}" for p in plans))
        return
    lacking = what_is_missing({need for plan in plans for need in plan.needs}) if args.on == GPU.name else {}
    if lacking:
        print("The GPU check cannot start here:", *(f"  {need}: {why}" for need, why in lacking.items()), sep="\n")
        raise SystemExit(EXIT_UNAVAILABLE)
    deadline = time.monotonic() + args.deadline
    date, command = datetime.date.today().isoformat(), " ".join(["python -m scripts.gpu.check", *sys.argv[1:]])
    here = machine(args.on)
    report = report_of(args.out, here, date)
    results, sources = read_results(report), code()
    args.folder.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        if args.only is None and is_done(plan.name, results):
            continue
        limit = min(seconds_of(plan, args.quick), deadline - time.monotonic())
        print(f"== {plan.name}, at most {max(limit, 0):.0f} s", file=sys.stderr, flush=True)
        found = run_part(plan.name, args.folder.resolve(), limit, quick=args.quick, on=args.on)
        results[plan.name] = better({**found, "code": sources}, results.get(plan.name))
        write_report(report, results, here, command, date)  # after each: nothing is lost
        keep_log(args.folder / f"{plan.name}.log", args.out)
        if plan.name == "probe" and found["status"] != "ok":
            break
    targets = write_report(report, results, here, command, date)
    print(report.read_text())
    raise SystemExit(EXIT_MISSED if any(target.verdict == MISSED for target in targets) else 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="parts, with commas between; `prepare` comes by itself where it is needed")
    folder = Path(tempfile.gettempdir()) / "gptexport-gpu"
    parser.add_argument("--folder", type=Path, default=folder, help=f"checkpoints, bundles, logs  [default: {folder}]")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements")
    parser.add_argument("--deadline", type=int, default=DEADLINE, help=f"seconds for all of it  [default: {DEADLINE}]")
    parser.add_argument("--on", choices=SETTINGS, default=GPU.name)
    parser.add_argument("--list", action="store_true", help="the plan, and nothing else")
    return parser.parse_args()


def choose(only: str | None, *, quick: bool) -> list[Plan]:
    """The parts to run, in order; `prepare` where another needs its bundles."""
    names = list(PARTS) if only is None else only.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"{unknown[0]} is no part; expected some of {', '.join(PARTS)}.")
    if set(names) - {"probe", "micro", "xl", "tests"}:
        names.append("prepare")
    return [plan for plan in PLANS if plan.name in names and seconds_of(plan, quick)]


def seconds_of(plan: Plan, quick: bool) -> int:
    return plan.quick_seconds if quick else plan.seconds


def is_done(name: str, results: dict[str, Any]) -> bool:
    """By another command of the day; bundles are made again where they are gone, which costs nothing where not."""
    return name not in ("probe", "prepare") and results.get(name, {}).get("status") == "ok"


def better(found: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """What a part has found; and what it had found before, where this time it did not come so far.

    Of other code than now nothing is kept, unless this time nothing was found at all.
    """
    if not before or not before.get("data"):
        return found
    if not found["data"]:
        return before
    if before.get("code") != found.get("code"):
        return found
    data = {**before["data"], **found["data"]}
    if "passes" in before["data"] and "passes" in found["data"]:
        data["passes"] = {**before["data"]["passes"], **found["data"]["passes"]}
    return {**found, "data": data}


def keep_log(log: Path, out: Path) -> None:
    """Beside the report: the folder it was written to does not come back from a machine that is lent."""
    if log.exists():
        logs = out / "gpu-logs"
        logs.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, logs / log.name)


def what_is_missing(needs: set[str]) -> dict[str, str]:
    """Of what is needed, what is not here, and why."""
    return {need: reason for need in sorted(needs) if (reason := CHECKS[need]()) is not None}


def _why_no_module(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"{name} is not installed: pip install {name}"


def _why_not_installed() -> str | None:
    """An export asks for its own version when it has done everything else."""
    try:
        importlib.metadata.version("gptexport")
    except importlib.metadata.PackageNotFoundError:
        return "gptexport is not installed, only imported: pip install --no-deps -e . -e runtime"
    return None


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
    "gptexport": _why_not_installed,
    "cuda": _why_no_torch_cuda,
    "onnxruntime": _why_no_onnxruntime,
    "memory": _why_no_memory,
}


def run_part(
    name: str, folder: Path, limit: float, *, quick: bool, on: str = GPU.name, command: Sequence[str] = PART
) -> dict[str, Any]:
    """A part in a process of its own, ended with all that it started when its time is over.

    Returns: status ("ok", "failed", "stopped" or "not begun"), seconds, data as far as it came, and the reason.
    """
    if limit < SHORTEST:
        return {"status": "not begun", "seconds": 0.0, "data": {}, "reason": "no time was left; --deadline gives more"}
    result = folder / f"{name}.json"
    result.unlink(missing_ok=True)
    whole = [*command, name, str(folder), str(result), "--on", on, *(["--quick"] if quick else [])]
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


def code() -> str:
    """Tells one state of the packages from another, which have the same version while they are worked on."""
    sources = sorted([*(ROOT / "gptexport").rglob("*.py"), *(ROOT / "runtime" / "gptexport_runtime").rglob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]


def machine(on: str) -> dict[str, Any]:
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
    return {
        "measured on": SETTINGS[on].title,
        "GPU": told,
        "driver, memory, clock": smi,
        "host": f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {value}" for name, value in versions(PACKAGES).items()),
    }


if __name__ == "__main__":
    main()
