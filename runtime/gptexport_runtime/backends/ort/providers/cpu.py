"""The CPU."""

from __future__ import annotations

import os
import types

from gptexport_runtime.backends.ort.host import HostBinding
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.backends.ort.providers.trial import why_not_running

# of one run: the activations of more fall out of the CPU's caches, and take memory for nothing
TOKENS_AT_ONCE = 1024


def usable_cores() -> int:
    """Cores that this process may run on, which in a container or under taskset are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _why_not(ort: types.ModuleType) -> str | None:
    return why_not_running(ort, CPU)


CPU = Provider(
    device="cpu",
    name="CPUExecutionProvider",
    why_not=_why_not,
    bind=lambda: HostBinding("cpu", TOKENS_AT_ONCE),
    tokens_at_once=TOKENS_AT_ONCE,
    threads=usable_cores,
    export_with=lambda _ort: "--target cpu",
)
