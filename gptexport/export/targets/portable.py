"""`--target portable`: plain ONNX, which any backend of its opset runs."""

from __future__ import annotations

from gptexport.export.targets.base import Target

PORTABLE = Target(name="portable", help="plain ONNX for any runtime", takes=lambda precision: precision.plain_onnx)
