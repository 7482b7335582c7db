"""Whom a graph is for. Torch-free, so that commands can list the targets; what one does is imported when it does it."""

from __future__ import annotations

from gptexport.export.targets.base import Target
from gptexport.export.targets.cpu import CPU
from gptexport.export.targets.cuda import CUDA
from gptexport.export.targets.portable import PORTABLE

TARGETS = {target.name: target for target in (PORTABLE, CPU, CUDA)}

__all__ = ["CPU", "CUDA", "PORTABLE", "TARGETS", "Target"]
