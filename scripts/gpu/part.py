"""A part of the GPU check: where it works, and what it has found so far."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.gpu.setting import GPU, Setting


@dataclass
class Part:
    """What it finds is in `result` as soon as it is found, so that a part that is stopped has not been for nothing."""

    folder: Path
    result: Path
    quick: bool = False
    setting: Setting = GPU
    data: dict[str, Any] = field(default_factory=dict)

    def found(self, **more: Any) -> None:
        self.data |= more
        self.result.write_text(json.dumps(self.data))

    def bundle(self, name: str) -> Path:
        return self.folder / name / "bundle"
