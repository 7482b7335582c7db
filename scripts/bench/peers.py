"""Every runtime that computes a GPT-2's logits on a CPU: how it gets the weights, and how it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.models import write_apart
from scripts.bench.processes import GPTEXPORT

# CTranslate2's converter insists on a tokenizer of the model's size
CONVERT = """
import json, sys
from pathlib import Path
import ctranslate2, tokenizers, transformers

folder, out = sys.argv[1:]
V = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{i}": i for i in range(V)}, unk_token="t0"))
names = {"unk_token": "t0", "bos_token": "t0", "eos_token": "t0"}
transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
ctranslate2.converters.TransformersConverter(folder).convert(out)
"""

MOBIUS = """
import sys
import mobius

mobius.build(sys.argv[1], dtype="f32").save(sys.argv[2], progress_bar=False)
"""

Run = Callable[[np.ndarray], object]  # ids (B,T) to logits, of whatever type the peer returns


class Buffer:
    """Logits are written where the last ones of that shape were."""

    def __init__(self) -> None:
        self._array = np.empty((0, 0, 0), np.float32)

    def of(self, shape: tuple[int, int, int]) -> np.ndarray:
        if self._array.shape != shape:
            self._array = np.empty(shape, np.float32)
        return self._array


def prepare(folder: Path, size: str) -> None:
    """The same random weights in every peer's format, each written by a process that ends."""
    hf = folder / "hf"
    hf.mkdir()
    write_apart(hf, size, "huggingface")
    export = [*GPTEXPORT, "onnx", str(hf), "-q", "-o"]
    steps = {
        "gptexport portable": [*export, str(folder / "portable")],
        "gptexport cpu": [*export, str(folder / "cpu"), "--target", "cpu"],
        "gptexport int8": [*export, str(folder / "int8"), "--target", "cpu", "--quantize", "int8"],
        "gptexport openvino": [*export, str(folder / "openvino"), "--target", "openvino"],
        "gptexport openvino bf16": [*export, str(folder / "openvino16"), "--target", "openvino", "--dtype", "bfloat16"],
        "OpenVINO": [*export, str(folder / "opset20.onnx"), "--opset", "20"],
        "CTranslate2": [sys.executable, "-c", CONVERT, str(hf), str(folder / "ct2")],
        "mobius": [sys.executable, "-c", MOBIUS, str(hf), str(folder / "mobius")],
    }
    for peer, command in steps.items():
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:  # it may not be installed; its worker will say so too
            print(f"no files for {peer}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)


def vocab_size(folder: Path) -> int:
    return int(json.loads((folder / "hf" / "config.json").read_text())["vocab_size"])


def gptexport(folder: Path, bundle: str) -> Run:
    from gptexport_runtime import load

    gpt = load(folder / bundle, "cpu")
    buffer = Buffer()
    return lambda ids: gpt.logits(ids, out=buffer.of((*ids.shape, gpt.config.vocab_size)))


def by_plugin(folder: Path, bundle: str) -> Run:
    """OpenVINO's plugin, on a CPU that it would not offer too."""
    from gptexport_runtime import load
    from scripts.bench.intel import pretend_intel

    pretend_intel()
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
    import openvino as ov

    model = ov.Core().compile_model(str(folder / graph), "CPU", {"INFERENCE_PRECISION_HINT": precision})
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
    "gptexport openvino": lambda folder: by_plugin(folder, "openvino"),
    "gptexport openvino bf16": lambda folder: by_plugin(folder, "openvino16"),
    "eager": eager,
    "eager bf16": lambda folder: eager(folder, dtype="bfloat16"),
    "torch.compile": lambda folder: eager(folder, compiled=True),
    "OpenVINO": openvino,
    "OpenVINO bf16": lambda folder: openvino(folder, precision="bf16"),
    "OpenVINO bf16 (our graph)": lambda folder: openvino(folder, "openvino16/logits.onnx", "bf16"),
    "mobius": mobius,
    "CTranslate2": lambda folder: ctranslate2(folder, "float32"),
    "CTranslate2 int8": lambda folder: ctranslate2(folder, "int8"),
}
