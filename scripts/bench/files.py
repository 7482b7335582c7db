"""What each peer reads: the same random weights in its own format, each written by a process that ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

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

# 8 bits a weight with a scale for each row, or 4 bits in groups of as many as ours, as OpenVINO's own tool makes them
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

# what is exported for each of our own bundles
BUNDLES = {
    "portable": "",
    "cpu": "--target cpu",
    "int8": "--target cpu --quantize int8",
    "int8w": "--target cpu --quantize int8w",
    "int4": "--target cpu --quantize int4",
    "int8-cache": "--target cpu --quantize int8 --quantize-cache",
    "int4-cache": "--target cpu --quantize int4 --quantize-cache",
    "openvino": "--target openvino",
    "openvino-bf16": "--target openvino --dtype bfloat16",
    "openvino-int8": "--target openvino --quantize int8",
    "openvino-int8w": "--target openvino --quantize int8w",
    "openvino-int4": "--target openvino --quantize int4",
    "plugin": "--target openvino",
    "plugin-bf16": "--target openvino --dtype bfloat16",
}


def prepare(folder: Path, size: str, names: Iterable[str]) -> None:
    """The same random weights in every peer's format, each written by a process that ends.

    Args:
        names: of `peers.PEERS`, or of others that are named alike.
    """
    hf = folder / "hf"
    hf.mkdir()
    write_apart(hf, size, "huggingface")
    wanted = dict.fromkeys(file for name in names for file in files_of(name))
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
            return [*python, NNCF, str(folder / "opset20.onnx"), out, "INT4_ASYM", "128"]
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
