"""Export: a checkpoint's model to ONNX graphs on disk."""

from gptexport.export.export import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]
