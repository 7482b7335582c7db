"""OpenVINO by its own Python package, which opens a graph without ONNX Runtime."""
