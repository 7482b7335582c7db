"""What the machine can do: its matrix products, and how much memory an artifact takes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptexport_runtime import ExecutionError
from gptexport_runtime.backends.ort.package import import_onnxruntime

Shape = tuple[int, int]
WARM_UP = 1  # runs that are not counted


def sgemm_rate(threads: int, *, size: tuple[int, int, int] = (1024, 768, 3072), tries: int = 5) -> float:
    """FLOP/s of ONNX Runtime's float32 matrix product of (M,K) and (K,N). By default GPT-2's largest but the head.

    The fastest of some tries: the yardstick of what its kernels reach here, not the hardware's limit. The second matrix
    is a weight, packed beforehand as in the model. Numpy's product is no yardstick: its BLAS may not know the machine.
    """
    import onnx

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
