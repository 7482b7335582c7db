"""Which attention kernels ONNX Runtime's CUDA provider took, read from what it says itself.

    python -m scripts.gpu.attention_kernel gpt2/ [--shapes 1x1,1x128,8x1024]

With ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1 in its environment, each attention node that runs prints a line such as
`Operator=Attention Node=node_attention DataType=bf16 SdpaKernel=FLASH_ATTENTION` to the process's standard output
(AttentionKernelDebugInfo::Print, contrib_ops/cuda/bert/attention_kernel_options.cc). It reads the variable when a
session opens, and prints from C++, so the run is a process of its own. Needs a GPU; the reading itself does not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_HERE = 4  # the exit code of gptexport where a device is not there
DEBUG_INFO = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
LINE = re.compile(
    r"Operator=(?P<operator>\w+)(?: Node=(?P<node>\S+))? DataType=(?P<dtype>\w+) SdpaKernel=(?P<kernel>[A-Z_]+)"
)
RUN = """
import sys
import numpy as np
from gptexport_runtime import load
with load(sys.argv[1], device=sys.argv[3]) as gpt:
    for shape in sys.argv[2].split(","):
        B, T = map(int, shape.split("x"))
        if T <= (gpt.config.block_size or T):
            gpt.logits(np.zeros((B, T), np.int64))
    if gpt.manifest and "decode" in gpt.manifest.graphs:
        gpt.generate([[0]], max_new_tokens=3, temperature=0)
"""


@dataclass(frozen=True)
class AttentionRun:
    """One attention node that ran."""

    operator: str  # Attention, GroupQueryAttention
    node: str
    dtype: str  # as ONNX Runtime calls it: fp32, fp16, bf16
    kernel: str  # FLASH_ATTENTION, CUDNN_FLASH_ATTENTION, EFFICIENT_ATTENTION, XQA, MATH


def read_log(log: str) -> list[AttentionRun]:
    """Every attention that ran, in order."""
    return [
        AttentionRun(found["operator"], found["node"] or "", found["dtype"], found["kernel"])
        for found in LINE.finditer(log)
    ]


def unexpected(runs: Sequence[AttentionRun], expected: Mapping[str, Sequence[str]]) -> list[str]:
    """What ran otherwise than a manifest's `expected_kernels` says, in words; also if nothing of it ran."""
    found = {(run.operator, run.kernel) for run in runs if run.kernel not in expected.get(run.operator, ())}
    wrong = [f"{operator} ran by {kernel}" for operator, kernel in sorted(found)]
    ran = {run.operator for run in runs}
    return wrong if ran & set(expected) else [*wrong, "no attention kernel was named in the log"]


def run_and_read(bundle: Path, shapes: str = "1x1,1x128,1x512", device: str = "cuda") -> list[AttentionRun]:
    """Run a bundle in a process of its own, and read which kernels it took; of a device but CUDA none is named.

    Raises:
        subprocess.CalledProcessError: it does not run; what it said is on standard error.
    """
    environment = {**os.environ, DEBUG_INFO: "1"}
    command = [sys.executable, "-c", RUN, str(bundle), shapes, device]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, errors="replace", check=True)
    return read_log(ran.stdout)


def main() -> int:
    from gptexport_runtime.backends.ort.providers import why_not
    from gptexport_runtime.contract.manifest import Manifest
    from gptexport_runtime.contract.names import MANIFEST_FILE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--shapes", default="1x1,1x128,1x512", help="the (B,T) to run at")
    arguments = parser.parse_args()
    expected = Manifest.from_json((arguments.bundle / MANIFEST_FILE).read_text()).expected_kernels
    if (reason := why_not("cuda")) is not None:
        print(f"error: {reason}", file=sys.stderr)
        return NOT_HERE
    runs = run_and_read(arguments.bundle, arguments.shapes)
    for run in dict.fromkeys((run.operator, run.dtype, run.kernel) for run in runs):
        print("{} in {}: {}".format(*run))
    if wrong := unexpected(runs, expected):
        print(f"error: expected {dict(expected)}; but {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
