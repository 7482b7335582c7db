"""Every runtime that computes a GPT-2's logits on a CPU: how it is opened and called."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.files import GGUF, context_of, vocab_size

Run = Callable[[np.ndarray], object]  # ids (B,T) to logits, of whatever type the peer returns


class Buffer:
    """Logits are written where the last ones of that shape were."""

    def __init__(self) -> None:
        self._array = np.empty((0, 0, 0), np.float32)

    def of(self, shape: tuple[int, int, int]) -> np.ndarray:
        if self._array.shape != shape:
            self._array = np.empty(shape, np.float32)
        return self._array


def gptexport(folder: Path, bundle: str) -> Run:
    """A session on the device that its bundle is written for."""
    from gptexport_runtime import load

    gpt = load(folder / bundle, "openvino" if bundle.startswith("openvino") else "cpu")
    buffer = Buffer()
    return lambda ids: gpt.logits(ids, out=buffer.of((*ids.shape, gpt.config.vocab_size)))


def by_plugin(folder: Path, bundle: str) -> Run:
    """OpenVINO's plugin, on a CPU that it would not offer too."""
    from gptexport_runtime import load
    from gptexport_runtime.backends.ort.providers import PROVIDERS
    from gptexport_runtime.backends.ort.providers.openvino import OPENVINO
    from scripts.bench.intel import pretend_intel

    pretend_intel()
    PROVIDERS.remove(OPENVINO)  # which comes first where it is installed
    gpt = load(folder / bundle, "openvino")
    buffer = Buffer()
    return lambda ids: gpt.logits(ids, out=buffer.of((*ids.shape, gpt.config.vocab_size)))


def eager(folder: Path, *, compiled: bool = False, dtype: str = "float32") -> Run:
    import torch

    from gptexport.checkpoints import load_checkpoint

    model = load_checkpoint(str(folder / "hf")).model.to(getattr(torch, dtype))
    forward: Callable[[torch.Tensor], object] = torch.compile(model) if compiled else model

    def run(ids: np.ndarray) -> object:
        with torch.inference_mode():
            return forward(torch.from_numpy(ids))

    return run


def openvino(folder: Path, graph: str = "opset20.onnx", precision: str = "f32") -> Run:
    """OpenVINO by hand, told what we tell it of activations beside quantized weights: by itself it is slower."""
    import openvino as ov

    told = {"INFERENCE_PRECISION_HINT": precision, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
    model = ov.Core().compile_model(str(folder / graph), "CPU", told)
    request = model.create_infer_request()
    return lambda ids: request.infer([ids], share_outputs=True)


def mobius(folder: Path) -> Run:
    """ONNX Runtime's graph builder; its graph generates, so it takes an empty cache and returns a full one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    graph = str(folder / "mobius" / "model.onnx")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    cache = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]
    V, buffer = vocab_size(folder), Buffer()

    def run(ids: np.ndarray) -> object:
        B, T = ids.shape
        out = buffer.of((B, T, V))
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((B, T), np.int64))
        binding.bind_cpu_input("position_ids", np.tile(np.arange(T), (B, 1)))
        for value in cache:
            binding.bind_cpu_input(value.name, np.empty((B, value.shape[1], 0, value.shape[3]), np.float32))
        binding.bind_output("logits", "cpu", 0, np.float32, out.shape, out.ctypes.data)
        for value in session.get_outputs()[1:]:
            binding.bind_output(value.name, "cpu")
        session.run_with_iobinding(binding)
        return out

    return run


def open_llama_cpp(file: Path, context: int) -> Any:
    """A llama_cpp.Llama on all cores, which keeps the logits of every token of the context."""
    import llama_cpp

    threads = os.cpu_count()
    return llama_cpp.Llama(
        str(file),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        logits_all=True,
        verbose=False,
    )


def logits_of_llama_cpp(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits (1,T,V) of ids (1,T). Raises: NotImplementedError: more rows than one."""
    if len(ids) > 1:
        raise NotImplementedError("one row at a time")
    model.reset()
    model.eval(ids[0].tolist())
    logits: np.ndarray = model.scores[None, : ids.shape[1]]
    return logits


def generate_by_llama_cpp(model: Any, ids: np.ndarray, count: int) -> object:
    """As many new tokens, greedily; of one row, as `logits_of_llama_cpp`."""
    token = int(np.argmax(logits_of_llama_cpp(model, ids)[0, -1]))
    for _ in range(count - 1):
        model.eval([token])
        token = int(np.argmax(model.scores[model.n_tokens - 1]))
    return token


def llama_cpp(folder: Path, kind: str) -> Run:
    """llama.cpp, of one row at a time."""
    model = open_llama_cpp(folder / f"{kind}.gguf", context_of(folder))
    return lambda ids: logits_of_llama_cpp(model, ids)


def open_ctranslate2(folder: Path, compute_type: str) -> Any:
    """A ctranslate2.Generator on all cores. compute_type: "float32" or "int8"."""
    from ctranslate2 import Generator

    return Generator(str(folder / "ct2"), device="cpu", compute_type=compute_type, intra_threads=os.cpu_count())


def ctranslate2(folder: Path, compute_type: str) -> Run:
    import ctranslate2 as ct2

    generator = open_ctranslate2(folder, compute_type)

    def run(ids: np.ndarray) -> object:
        tokens = ct2.StorageView.from_array(ids.astype(np.int32))
        lengths = ct2.StorageView.from_array(np.full(len(ids), ids.shape[1], np.int32))
        return np.asarray(generator.forward_batch(tokens, lengths))

    return run


PEERS: dict[str, Callable[[Path], Run]] = {
    "gptexport portable": lambda folder: gptexport(folder, "portable"),
    "gptexport cpu": lambda folder: gptexport(folder, "cpu"),
    "gptexport int8": lambda folder: gptexport(folder, "int8"),
    "gptexport int4": lambda folder: gptexport(folder, "int4"),
    "gptexport openvino": lambda folder: gptexport(folder, "openvino"),
    "gptexport openvino bf16": lambda folder: gptexport(folder, "openvino-bf16"),
    "gptexport int8w": lambda folder: gptexport(folder, "int8w"),
    "gptexport openvino int8": lambda folder: gptexport(folder, "openvino-int8"),
    "gptexport openvino int8w": lambda folder: gptexport(folder, "openvino-int8w"),
    "gptexport openvino int4": lambda folder: gptexport(folder, "openvino-int4"),
    "gptexport plugin": lambda folder: by_plugin(folder, "plugin"),
    "gptexport plugin bf16": lambda folder: by_plugin(folder, "plugin-bf16"),
    "eager": eager,
    "eager bf16": lambda folder: eager(folder, dtype="bfloat16"),
    "torch.compile": lambda folder: eager(folder, compiled=True),
    "torch.compile bf16": lambda folder: eager(folder, compiled=True, dtype="bfloat16"),
    "OpenVINO": openvino,
    "OpenVINO bf16": lambda folder: openvino(folder, precision="bf16"),
    "OpenVINO bf16 (our graph)": lambda folder: openvino(folder, "openvino-bf16/logits.onnx", "bf16"),
    "OpenVINO int8": lambda folder: openvino(folder, "int8.xml"),
    "OpenVINO int4": lambda folder: openvino(folder, "int4.xml"),
    "mobius": mobius,
    "CTranslate2": lambda folder: ctranslate2(folder, "float32"),
    "CTranslate2 bf16": lambda folder: ctranslate2(folder, "bfloat16"),
    "CTranslate2 int8": lambda folder: ctranslate2(folder, "int8"),
    "llama.cpp F32": lambda folder: llama_cpp(folder, "F32"),
    "llama.cpp Q8_0": lambda folder: llama_cpp(folder, "Q8_0"),
    "llama.cpp Q4_0": lambda folder: llama_cpp(folder, "Q4_0"),
    "llama.cpp Q4_K": lambda folder: llama_cpp(folder, GGUF["Q4_K"]),
}
