"""A loaded checkpoint becomes a bundle, or one .onnx file: trace, make portable, write, check, then show it."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gptexport.casting import cast_parameters
from gptexport.checkpoints import Checkpoint
from gptexport.config import DType, Quantize, Target
from gptexport.dtypes import TORCH_DTYPES
from gptexport.errors import ExportError
from gptexport.export.check import check_audit, check_graph, check_kernels, compare_counts, describe_checks
from gptexport.export.cuda import CUDA_SCORE_CHUNK, expected_kernels
from gptexport.export.derive import derive_graphs
from gptexport.export.fuse import fuse_graphs
from gptexport.export.heads import SCORE_CHUNK
from gptexport.export.int8 import calibration_ids, quantize_weights, smooth
from gptexport.export.portable import make_portable
from gptexport.export.run import run_samples, run_twin, take_samples
from gptexport.export.trace import DEFAULT_OPSET, trace_logits
from gptexport.export.widen import widen_hidden
from gptexport.export.write import write_graphs, write_tokenizer
from gptexport.models.gpt2 import GPT
from gptexport.staging import data_file, staged, write_file
from gptexport.tokenizers import Travelling
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import MANIFEST_FILE, WEIGHTS_FILE

INLINE_BYTES = 100 << 20  # a lone .onnx keeps weights up to this inside; protobuf itself ends at 2 GiB


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found on the way."""

    path: Path
    manifest: Manifest
    check_error: float | None  # worst relative RMS against eager at untraced shapes; None: not runnable on this CPU
    bytes: int


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: DType = "float32",
    target: Target = "portable",
    quantize: Quantize | None = None,
    graphs: Sequence[str] | None = None,
    tokenizer: Travelling | None = None,
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    progress: Callable[[str], None] = lambda _step: None,
) -> Exported:
    """Write `checkpoint` as a bundle folder, or as a lone graph where `out` ends in .onnx.

    Consumes the checkpoint: its model is cast to `dtype` in place, and its memory is given back, if nobody else holds
    it, as soon as the weights are on disk.

    Args:
        target: "portable" runs anywhere; "cpu" is rewritten for ONNX Runtime's CPU provider, in float32; "cuda" for
            its CUDA provider, in any dtype.
        quantize: "int8" needs target "cpu".
        tokenizer: to travel in the bundle.
        graphs: names of heads to write into the bundle. None: all, less those that the forward does not allow.

    Raises:
        ExportError: the model cannot become the contract's graph; nothing is written.
        OutputExistsError: `out` is there and `force` is not given, or is not gptexport's to replace.
        OutputError: `out` cannot be written.
    """
    lone = out.suffix == ".onnx"
    if target == "cpu" and dtype != "float32":
        raise ExportError(f"--target cpu with --dtype {dtype}: ONNX Runtime's fused CPU kernels are float32 only.")
    if quantize is not None and target != "cpu":
        raise ExportError(
            f"--quantize {quantize} with --target {target}: its kernels are the CPU's. Pass --target cpu."
        )
    if tokenizer is not None and lone:
        raise ExportError("a lone .onnx carries no tokenizer; name a folder with -o.")
    if tokenizer is not None and tokenizer.size > checkpoint.vocab_size:
        raise ExportError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the model's vocabulary {checkpoint.vocab_size}: "
            "it is not this model's."
        )
    with staged(out, force=force) as folder:
        names = {heads.LOGITS.name: out.name} if lone else {name: head.file for name, head in heads.HEADS.items()}
        model = checkpoint.model
        cast_parameters(model, TORCH_DTYPES[dtype])
        limits = {"block_size": checkpoint.block_size, "vocab_size": checkpoint.vocab_size}

        if quantize is not None and isinstance(model, GPT):
            progress("moving the activations' outliers into the weights")
            smooth(model, calibration_ids(**limits))
        progress(f"tracing at opset {opset}")
        trace = trace_logits(model, block_size=checkpoint.block_size, opset=opset)
        make_portable(trace, model, **limits)
        by_twin = target == "cuda" and dtype != "float32"  # whose weights the trace has, so that the model may widen
        samples = take_samples(
            model.float() if by_twin else model,
            block_size=checkpoint.block_size,
            vocab_size=checkpoint.predicted_ids,
            longest=trace.longest,
        )
        expected, parameters = trace.expected, sum(p.numel() for p in model.parameters())
        checkpoint = replace(checkpoint, model=torch.nn.Module())
        del model
        before = quantize_weights(trace) if quantize is not None else widen_hidden(trace) if target == "cpu" else {}

        progress(f"writing {trace.weight_bytes / 1e6:,.0f} MB of weights")
        inline = lone and trace.weight_bytes <= INLINE_BYTES
        weights_path = None if inline else folder / (data_file(out).name if lone else WEIGHTS_FILE)
        chunk = CUDA_SCORE_CHUNK if target == "cuda" else SCORE_CHUNK
        derived, left_out = (
            ({heads.LOGITS.name: trace}, {}) if lone else derive_graphs(trace, graphs, score_chunk=chunk)
        )
        own_model = checkpoint.config is not None  # in which nothing may fall apart; a user's may have its reasons
        fused = fuse_graphs(derived, target, dtype, block_size=limits["block_size"])
        weights, entries = write_graphs(derived, {kind: folder / names[kind] for kind in derived}, weights_path)
        del trace, derived
        gc.collect()  # the traced program holds the weights in reference cycles; ONNX Runtime needs their room

        progress(f"checking {', '.join(entry.file for entry in entries.values())}")
        achieved, errors = {}, []
        for kind, entry in list(entries.items()):
            try:
                achieved[kind] = check_graph(folder / entry.file, kind)
                if target == "cuda":
                    check_kernels(folder / entry.file, kind)
                if by_twin:
                    errors.append(run_twin(folder / entry.file, kind, samples))
                else:
                    errors.append(run_samples(folder / entry.file, kind, samples, quantize or dtype))
            except ExportError as error:
                if kind != heads.DECODE.name or graphs is not None or own_model:
                    raise
                left_out[kind] = str(error)  # it is made of what we think that the user's forward does
                (folder / entries.pop(kind).file).unlink()
        for audit in fused.values():
            check_audit(audit, strict=own_model)
        audits = check_audit(
            {**before, **fused[heads.LOGITS.name]} if fused else compare_counts(expected, achieved[heads.LOGITS.name]),
            strict=own_model,
        )
        checked = describe_checks(target, by_twin=by_twin, ran=any(error is not None for error in errors))
        kernels = (
            expected_kernels(dtype, config.head_size) if target == "cuda" and (config := checkpoint.config) else {}
        )
        words = write_tokenizer(tokenizer, folder) if tokenizer is not None else None
        manifest = Manifest(
            model=_describe(checkpoint),
            source={
                "format": checkpoint.format,
                "sha256": checkpoint.sha256,
                "gelu_source": checkpoint.gelu_source,
                "options": dict(checkpoint.options),
            },
            dtype=dtype,
            target=target,
            opset=opset,
            graphs=entries,
            weights=weights,
            parameters=parameters,
            quantize=quantize,
            producer=_versions(),
            audit=audits,
            left_out=left_out,
            checked=checked,
            expected_kernels=kernels,
            tokenizer=words,
            text=checkpoint.text,
            runs_on=("cuda",) if by_twin else ("cpu", "cuda"),
        )
        files = [entry for entry in (weights, *entries.values()) if entry is not None]
        if not lone:
            write_file(folder / MANIFEST_FILE, manifest.to_json().encode())
    check_error = max((error for error in errors if error is not None), default=None)
    return Exported(out, manifest, check_error, sum(entry.bytes for entry in files))


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.config is not None:
        return {"architecture": "gpt2", **checkpoint.config.to_dict()}
    ids = {"input_vocab_size": checkpoint.input_vocab_size} if checkpoint.input_vocab_size is not None else {}
    return {"architecture": "module", "block_size": checkpoint.block_size, "vocab_size": checkpoint.vocab_size, **ids}


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("gptexport", "torch", "onnx", "onnxscript")}
    return {**packages, "python": platform.python_version()}
