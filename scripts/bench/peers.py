"""Every runtime that computes a GPT-2's logits on a CPU: how it gets the weights, and how it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
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

# 8 bits a weight with a scale for each row, or 4 bits in groups of 128 or 32, as OpenVINO's own tool makes them
NNCF = """
import sys
import nncf, openvino

source, out, mode, group = sys.argv[1:]
how = {"mode": nncf.CompressWeightsMode[mode]}
if mode.startswith("INT4"):
    how |= {"group_size": int(group), "all_layers": True}
openvino.save_model(nncf.compress_weights(openvino.Core().read_model(source), **how), out, compress_to_fp16=False)
"""

QUANTIZE_GGUF = """
import sys
import llama_cpp

source, out, kind = sys.argv[1:]
how = llama_cpp.llama_model_quantize_default_params()
how.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
assert llama_cpp.llama_model_quantize(source.encode(), out.encode(), how) == 0
"""

GGUF = {"Q4_K": "Q4_K_M"}  # llama.cpp's names of mixtures
Run = Callable[[np.ndarray], object]  # ids (B,T) to logits, of whatever type the peer returns


# what is exported for each of our own bundles
BUNDLES = {
    "portable": "",
    "cpu": "--target cpu",
    "int8": "--target cpu --quantize int8",
    "int4": "--target cpu --quantize int4",
    "openvino": "--target openvino",
    "openvino-bf16": "--target openvino --dtype bfloat16",
    "openvino-int8": "--target openvino --quantize int8",
    "openvino-int4": "--target openvino --quantize int4",
    "plugin": "--target openvino",
    "plugin-bf16": "--target openvino --dtype bfloat16",
}


class Buffer:
    """Logits are written where the last ones of that shape were."""

    def __init__(self) -> None:
        self._array = np.empty((0, 0, 0), np.float32)

    def of(self, shape: tuple[int, int, int]) -> np.ndarray:
        if self._array.shape != shape:
            self._array = np.empty(shape, np.float32)
        return self._array


def prepare(folder: Path, size: str, names: Iterable[str] | None = None) -> None:
    """The same random weights in every peer's format, each written by a process that ends.

    Args:
        names: of PEERS, or of others that are named alike; None: all.
    """
    hf = folder / "hf"
    hf.mkdir()
    write_apart(hf, size, "huggingface")
    wanted = dict.fromkeys(file for name in (names or PEERS) for file in files_of(name))
    for file in wanted:
        done = subprocess.run(_command(folder, file), capture_output=True, text=True)
        if done.returncode:  # it may not be installed; the peer's worker will say so too
            print(f"no {file}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}", file=sys.stderr)


def files_of(peer: str) -> list[str]:
    """What a peer reads, by name in the folder, and before it what that is made of."""
    match peer.split():
        case ["gptexport", *rest]:
            return ["-".join(rest)]
        case ["OpenVINO", "int8" | "int4" as kind]:
            return ["opset20.onnx", f"{kind}.xml"]
        case ["OpenVINO", *rest]:
            return ["openvino-bf16"] if "graph)" in rest else ["opset20.onnx"]
        case ["CTranslate2", *_]:
            return ["ct2"]
        case ["mobius"]:
            return ["mobius"]
        case ["llama.cpp", kind]:
            return ["F32.gguf"] if kind == "F32" else ["F32.gguf", f"{GGUF.get(kind, kind)}.gguf"]
        case _:
            return []


def _command(folder: Path, file: str) -> list[str]:
    """What writes it."""
    hf, out = str(folder / "hf"), str(folder / file)
    python = [sys.executable, "-c"]
    match file.split("."):
        case [bundle] if bundle in BUNDLES:
            return [*GPTEXPORT, "onnx", hf, "-q", "-o", out, *BUNDLES[bundle].split()]
        case ["opset20", _]:
            return [*GPTEXPORT, "onnx", hf, "-q", "-o", out, "--opset", "20"]
        case ["int8", "xml"]:
            return [*python, NNCF, str(folder / "opset20.onnx"), out, "INT8_ASYM", "0"]
        case ["int4", "xml"]:
            return [*python, NNCF, str(folder / "opset20.onnx"), out, "INT4_ASYM", "32"]
        case ["ct2"]:
            return [*python, CONVERT, hf, out]
        case ["mobius"]:
            return [*python, MOBIUS, hf, out]
        case ["F32", _]:
            return [*GPTEXPORT, "gguf", hf, "-q", "-o", out]
        case [kind, "gguf"]:
            return [*python, QUANTIZE_GGUF, str(folder / "F32.gguf"), out, kind]
    raise AssertionError(f"nothing writes {file}")


def context_of(folder: Path) -> int:
    return int(json.loads((folder / "hf" / "config.json").read_text())["n_positions"])


def vocab_size(folder: Path) -> int:
    return int(json.loads((folder / "hf" / "config.json").read_text())["vocab_size"])


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
    "gptexport openvino int8": lambda folder: gptexport(folder, "openvino-int8"),
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
