"""The targets that a graph can be written for. Torch-free, so that commands can list them."""

from __future__ import annotations

from gptexport.export.targets.base import Target
from gptexport.export.targets.cpu import CPU
from gptexport.export.targets.cuda import CUDA
from gptexport.export.targets.openvino import OPENVINO
from gptexport.export.targets.portable import PORTABLE

TARGETS = {target.name: target for target in (PORTABLE, CPU, CUDA, OPENVINO)}

__all__ = ["CPU", "CUDA", "OPENVINO", "PORTABLE", "TARGETS", "Target"]
