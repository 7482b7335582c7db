"""Export: a checkpoint's model to ONNX graphs on disk. Torch is imported when `export_onnx` is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptexport.export.pipeline import Exported, export, export_onnx

__all__ = ["Exported", "export", "export_onnx"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from gptexport.export import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
