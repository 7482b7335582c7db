"""What a check of parity found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptexport.parity.locate.diagnosis import Diagnosis
from gptexport.parity.measure.measured import Measured
from gptexport.parity.verdict.judge import Verdict


@dataclass(frozen=True)
class GeluMismatch:
    """The one mistake that is not the export's: a GELU that was named when the artifact was exported, and not here."""

    exported: str
    assumed: str

    def advice(self) -> str:
        return (
            f"The artifact was exported with GELU {self.exported}; this checkpoint's is taken to be {self.assumed}. "
            f"If it was trained with {self.exported}, pass --gelu {self.exported} here too."
        )


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Truthy when the artifact is the same model as the checkpoint."""

    verdict: Verdict
    measured: Measured
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    certificate: Path | None = None  # the file that the verdict was recorded in
    notes: tuple[str, ...] = ()  # what could not be done, though the verdict stands
    gelu: GeluMismatch | None = None

    def __bool__(self) -> bool:
        return self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        recorded = self.certificate.name if self.certificate else None
        return {
            **self.verdict.to_dict(),
            **self.diagnosis.to_dict(),
            "recorded": recorded,
            "notes": [*self.verdict.notes, *self.notes],
        }
