"""How fast is it, beside what: interleaved rounds and paired ratios, because a machine's speed drifts.

In every round each candidate runs once, one after the other; a ratio is taken within a round, the median over rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from gptexport_runtime import ExecutionError
from gptexport_runtime.backends.ort.package import import_onnxruntime

Ids = npt.NDArray[np.int64]
Shape = tuple[int, int]
Candidate = Callable[[Ids], object]  # one forward of ids (B,T) to logits

WARM_UP = 1  # rounds that are not counted
PAUSE = 0.1  # seconds before each run: the threads of the one before go on spinning for a while, and take its cores


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One candidate at one shape. Times in seconds."""

    name: str
    shape: Shape
    median: float
    fastest: float
    speed_ratio: float  # the baseline's time divided by this one's, median over rounds; above 1 is faster
    tokens_per_second: float
    gemm_fraction: float | None  # of `sgemm_rate`; None where that, or the model's FLOPs, are not known


def measure(
    candidates: Mapping[str, Candidate],
    shapes: Sequence[Shape],
    *,
    vocab_size: int,
    baseline: str,
    rounds: int,
    flops: Callable[[int, int], float] | None = None,
    sgemm: float | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> list[Timing]:
    """Time every candidate at every shape, in turn within each round.

    Args:
        baseline: the candidate that the others' speed is given relative to.
        rounds: counted rounds; one more comes first, to warm up.
        flops: of a forward of (B,T), where the architecture's are known.
        sgemm: FLOP/s of the machine.
    """
    timings = []
    for B, T in shapes:
        progress(f"B,T = {B},{T}: {rounds} rounds of {', '.join(candidates)}")
        ids = np.random.default_rng(0).integers(0, vocab_size, (B, T))
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for counted in range(-WARM_UP, rounds):
            for name, run in candidates.items():
                time.sleep(PAUSE)
                began = time.perf_counter()
                run(ids)
                spent = time.perf_counter() - began
                if counted >= 0:
                    seconds[name].append(spent)
        ideal = flops(B, T) / sgemm if flops is not None and sgemm is not None else None
        for name, spent_each in seconds.items():
            median = statistics.median(spent_each)
            ratios = [base / own for base, own in zip(seconds[baseline], spent_each, strict=True)]
            timings.append(
                Timing(
                    name=name,
                    shape=(B, T),
                    median=median,
                    fastest=min(spent_each),
                    speed_ratio=statistics.median(ratios),
                    tokens_per_second=B * T / median,
                    gemm_fraction=ideal / median if ideal is not None else None,
                )
            )
    return timings


def sgemm_rate(threads: int, *, size: tuple[int, int, int] = (1024, 768, 3072), tries: int = 5) -> float:
    """FLOP/s of ONNX Runtime's float32 matrix product of (M,K) and (K,N). By default GPT-2's largest but the head.

    The fastest of some tries: the yardstick of what its kernels reach here, not the hardware's limit. The second matrix
    is a weight, packed beforehand as in the model. Numpy's product is no yardstick: its BLAS may not know the machine.
    """
    onnxruntime = import_onnxruntime()
    rows, inner, columns = size
    random = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(random.random((inner, columns), dtype=np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([product], "sgemm", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out = np.empty((rows, columns), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", random.random((rows, inner), dtype=np.float32))
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    fastest = float("inf")
    for _ in range(WARM_UP + tries):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * rows * inner * columns / fastest


CALLS_OF_ITS_OWN = """
import sys, numpy
from gptexport_runtime import load
path, device, calls, prepack, threads, B, T = *sys.argv[1:4], *map(int, sys.argv[4:])
with load(path, device, threads=threads, prepack=bool(prepack)) as session:
    for call in calls.split(","):
        getattr(session, call)(numpy.zeros((B, T), numpy.int64))
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(int(status[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile")))
"""


@dataclass(frozen=True)
class Memory:
    """The memory of a process, in bytes."""

    peak: int  # pages of mapped files count while they are touched, though the system may drop them
    own: int  # at the end: what is the process's alone
    files: int  # at the end: pages of mapped files


def memory_of(
    artifact: Path, device: str, threads: int, shape: Shape, *, calls: Sequence[str] = ("logits",), prepack: bool = True
) -> Memory | None:
    """What a process of its own takes that loads `artifact` and makes each call once; None where Linux is not.

    Args:
        calls: methods of a session that take ids (B,T).

    Raises:
        ExecutionError: it failed.
    """
    if sys.platform != "linux":
        return None
    arguments = [str(artifact), device, ",".join(calls), int(prepack), threads, *shape]
    command = [sys.executable, "-c", CALLS_OF_ITS_OWN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ExecutionError(f"{artifact} failed at {shape} in a process of its own: {done.stderr.strip()[-300:]}")
    return Memory(*map(int, done.stdout.split()))
