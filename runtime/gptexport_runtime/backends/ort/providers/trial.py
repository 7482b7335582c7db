"""A model of one node shows whether a provider really runs: ONNX Runtime replaces one that cannot with the CPU."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

import numpy as np

from gptexport_runtime.backends.ort.package import SILENT, first_line

if TYPE_CHECKING:
    from gptexport_runtime.backends.ort.providers.provider import Provider

# `Neg` from x to y, both float32 of shape (1,): what protobuf makes of the ONNX ModelProto that the comments spell out.
# Written by hand because the runtime has no onnx to write it with.
TINY_MODEL = (
    b"\x08\x08"  # ir_version: 8
    b"\x3a\x2e"  # graph, 46 bytes:
    b"\x0a\x0b\x0a\x01x\x12\x01y\x22\x03Neg"  # node: input "x", output "y", op_type "Neg"
    b"\x12\x01g"  # name: "g"
    b"\x5a\x0d\x0a\x01x\x12\x08\x0a\x06\x08\x01\x12\x02\x0a\x00"  # input: "x", tensor of float, one unnamed dim
    b"\x62\x0d\x0a\x01y\x12\x08\x0a\x06\x08\x01\x12\x02\x0a\x00"  # output: "y", likewise
    b"\x42\x02\x10\x0d"  # opset_import: version 13
)


def why_not_running(ort: types.ModuleType, provider: Provider) -> str | None:
    """None where the provider runs the model; else why it does not."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    try:
        arguments = provider.attach(ort, options, {})
        session = ort.InferenceSession(TINY_MODEL, options, **arguments, enable_fallback=0)
        if provider.name not in session.get_providers():
            return f"{provider.name} did not load; ONNX Runtime took {', '.join(session.get_providers())} instead."
        (y,) = session.run(["y"], {"x": np.array([1.5], dtype=np.float32)})
    except Exception as error:  # whatever stops it is the answer
        return f"{provider.name} does not run: {first_line(error)}"
    return None if y.tolist() == [-1.5] else f"{provider.name} computes wrongly: -(1.5) gave {y.tolist()}."
