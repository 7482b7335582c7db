"""What a call does on the GPU, as CUPTI tells torch's profiler: kernels, copies with their bytes, captured graphs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """A kernel, a copy or a call of CUDA's API."""

    name: str
    kind: str  # "kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "cuda_driver"
    microseconds: float
    bytes: int  # of a copy


def events_of(call: Callable[[], object]) -> list[Event]:
    """Run once under the profiler, which sees only what was opened after torch's own CUDA context; none without one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        call()
        return []
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text()))


def read_trace(trace: Mapping[str, Any]) -> list[Event]:
    """The events of a Chrome trace that have a duration."""
    return [
        Event(
            event["name"], event.get("cat", ""), float(event.get("dur", 0)), int(event.get("args", {}).get("bytes", 0))
        )
        for event in trace["traceEvents"]
        if event.get("ph") == "X"
    ]


def bytes_to_host(events: Iterable[Event]) -> int:
    return sum(event.bytes for event in events if event.kind == "gpu_memcpy" and "DtoH" in event.name)


def graph_launches(events: Iterable[Event]) -> int:
    """Replays: cudaGraphLaunch, or the driver's cuGraphLaunch."""
    return sum("graphlaunch" in event.name.lower() for event in events)
