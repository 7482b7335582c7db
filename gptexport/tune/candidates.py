"""What could be chosen: every target in every precision that this machine runs."""

from __future__ import annotations

from dataclasses import dataclass

from gptexport.export.targets import TARGETS, Target
from gptexport.precision import PRECISIONS, Precision
from gptexport_runtime.backends.ort.providers import why_not
from gptexport_runtime.contract.heads import LOGITS, Head


@dataclass(frozen=True)
class Candidate:
    """An export, and the device that it runs on."""

    target: Target
    precision: Precision
    device: str

    @property
    def name(self) -> str:
        return f"{self.target}-{self.precision.name}"


def candidates(head: Head = LOGITS) -> list[Candidate]:
    """All that this machine runs, each on the device that its target names first, which it is written for.

    Args:
        head: what is to be timed. A target whose graph of it runs on the CPU all the same has none of its own.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing.
    """
    found = []
    for target in TARGETS.values():
        if head.cached and target.cached_on_cpu:
            continue
        for precision in PRECISIONS.values():
            if target.takes(precision):
                device = target.runs_on(precision)[0]
                if why_not(device) is None:
                    found.append(Candidate(target, precision, device))
    return found
