"""What a session allocates, launches and waits for on the pretended GPU, which counts.

    python -m scripts.gpu.pretend gpt2-cuda/ --measure      # which runs python -m scripts.gpu.pretend.measure over it

It speaks to the runtime's public names alone, so that the runtime of an earlier commit can be measured too (--runtime).
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from gptexport_runtime import CudaOptions, load

LIBRARIES, PRETENDED = "PRETEND_LIBRARIES", "libpretended.so"
COUNTED = ("mallocs", "bytes", "launches", "graph_launches", "waits")  # of cuda.c, as pretended_*
STEP = 8  # tokens from one length to the next
CALLS = 200


def counts() -> Counter[str]:
    """What the pretended GPU has been asked for so far; bytes are those that are allocated now."""
    library = ctypes.CDLL(str(Path(os.environ[LIBRARIES]) / PRETENDED))
    found: Counter[str] = Counter()
    found.update({name: ctypes.c_long.in_dll(library, f"pretended_{name}").value for name in COUNTED})
    return found


def lengths(bundle: Path) -> dict[str, float]:
    """What the arena has taken after 1xT for each T that is a multiple of 8, ascending, twice each."""
    with load(bundle, "cuda", cuda=CudaOptions(graphs=False)) as gpt:
        longest, before = gpt.config.block_size or 1, counts()
        for T in range(STEP, longest + 1, STEP):
            for _ in range(2):
                gpt.logits(np.zeros((1, T), np.int64), device_output=True)
        taken = counts() - before
    return {"arena_MB": taken["bytes"] / 1e6, "cudaMallocs": taken["mallocs"]}


def one_call(bundle: Path, graphs: bool | None) -> dict[str, float]:
    """Of one call of logits 1x1, left on the device: launches, waits, and microseconds on the host, the median."""
    with load(bundle, "cuda", cuda=CudaOptions(graphs=graphs)) as gpt:
        ids = np.zeros((1, 1), np.int64)
        for _ in range(20):
            gpt.logits(ids, device_output=True)
        before, spent = counts(), []
        for _ in range(CALLS):
            began = time.perf_counter()
            gpt.logits(ids, device_output=True)
            spent.append(time.perf_counter() - began)
        each = counts() - before
    told = {name: each[name] / CALLS for name in COUNTED[2:]}
    return {**told, "host_us": 1e6 * statistics.median(spent)}


if __name__ == "__main__":
    asked = Path(sys.argv[1])
    found = {"lengths": lengths(asked), "captured": one_call(asked, None), "not captured": one_call(asked, False)}
    print(json.dumps(found))
