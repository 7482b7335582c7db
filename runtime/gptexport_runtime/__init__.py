"""Run an exported GPT: numpy in, numpy out. Needs numpy and ONNX Runtime; never imports torch, onnx or click."""

__version__ = "0.1.0"
