"""`--target portable`: plain ONNX, which any backend of its opset runs."""

from __future__ import annotations

from gptexport.export.targets.base import Target
from gptexport.precision import BFLOAT16, FLOAT16, FLOAT32

PORTABLE = Target(name="portable", help="plain ONNX for any runtime", precisions=(FLOAT32, FLOAT16, BFLOAT16))
