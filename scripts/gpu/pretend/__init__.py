"""A CUDA and a cuDNN that compute nothing, to watch ONNX Runtime's CUDA provider decide."""
