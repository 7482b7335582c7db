"""A loaded checkpoint becomes a bundle, or one .onnx: trace, normalize, derive, rewrite, write, verify, commit."""

from __future__ import annotations

import gc
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from gptexport.assumptions import ASSUMPTIONS
from gptexport.casting import Cast
from gptexport.checkpoints import Checkpoint
from gptexport.errors import ExportError
from gptexport.export.attention import OP_TYPE as ATTENTION
from gptexport.export.attention import attentions
from gptexport.export.heads import HEAD_GRAPHS
from gptexport.export.layout import Layout, layout_for
from gptexport.export.normalize import normalize
from gptexport.export.rewrites.by_hand import recognise_attention
from gptexport.export.rewrites.pad_vocab import pad_vocab as pad_rows
from gptexport.export.rewrites.positions import LARGEST_TABLE
from gptexport.export.settle import HeadExport, Traced, apply_rewrites, quantize_cache, verify_graphs
from gptexport.export.sizes import Sizes
from gptexport.export.trace import Trace, trace_logits
from gptexport.export.verify import (
    Run,
    check_audit,
    compare_counts,
    explain_nan,
    needs_float32,
    take_samples,
)
from gptexport.export.write import write_graph, write_tokenizer
from gptexport.recipe import DEFAULT_OPSET, Limits, Recipe
from gptexport.staging import staged
from gptexport.tokenizers import BundledTokenizer, check_size
from gptexport_runtime.contract.manifest import Manifest, TokenizerEntry
from gptexport_runtime.contract.model import FileEntry

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found on the way."""

    path: Path
    manifest: Manifest
    check_error: float  # worst relative RMS against eager, at shapes that were not traced
    run: Run  # how that was found
    bytes: int
    notes: tuple[str, ...] = ()  # what a person should be told


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: str = "float32",
    target: str | None = None,
    quantize: str | None = None,
    quantize_cache: bool = False,
    graphs: Sequence[str] | None = None,
    tokenizer: BundledTokenizer | None = None,
    opset: int = DEFAULT_OPSET,
    pad_vocab: bool = False,
    native_logits: bool = False,
    layout: str | None = None,
    force: bool = False,
    progress: Progress = lambda _step: None,
) -> Exported:
    """Write `checkpoint` as a bundle folder, or as a single graph where `out` ends in .onnx. The model is not changed.

    Args:
        dtype: "float32", "float16" or "bfloat16".
        target: "portable" runs anywhere; "cpu" is rewritten for ONNX Runtime's CPU provider; "cuda" for its CUDA
            provider. None: portable, or the one that `quantize` needs.
        quantize: "int8", "int8w" or "int4", for targets "cpu" and "openvino".
        quantize_cache: keep the keys and values of `decode` in 8 bits, beside quantized weights.
        graphs: names of heads to write into the bundle; the logits are always there. None: all, less those that the
            forward does not allow.
        tokenizer: goes into the bundle.
        pad_vocab: of target "cuda" in 16 bits: rows of logits begin on 128 bytes, so that a session's
            `device_output` is a view of longer rows. Its shape stays (B,T,V).
        native_logits: there too: logits stay in the 16-bit floats that they are computed in. A session's arrays on the
            host are float32 all the same, with the same numbers; `device_output` has the floats as they are.
        layout: "bundle", or "genai": a bundle that onnxruntime-genai opens too. None: as `out` says.

    Raises:
        ExportError: the model cannot become the contract's graph, or the options do not go together; nothing is
            written.
        OutputExistsError: `out` is there and `force` is not given, or is not gptexport's to replace.
    """
    recipe = Recipe.of(
        dtype=dtype,
        target=target,
        quantize=quantize,
        quantize_cache=quantize_cache,
        graphs=graphs,
        opset=opset,
        tokenizer=tokenizer,
        pad_vocab=pad_vocab,
        native_logits=native_logits,
    )
    return export(checkpoint, out, recipe, layout=layout, force=force, progress=progress)


def export(
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    layout: str | None = None,
    force: bool = False,
    progress: Progress = lambda _step: None,
) -> Exported:
    """Like `export_onnx`, with a recipe that was made before."""
    place = layout_for(out, layout)
    place.check(recipe)
    limits = Limits(block_size=checkpoint.block_size, vocab_size=checkpoint.predicted_ids)
    check_size(recipe.tokenizer, max(checkpoint.vocab_size, checkpoint.input_vocab_size or 0))
    with staged(out, force=force) as folder:
        traced = _trace(checkpoint, recipe, limits, progress)
        try:
            done = _make(checkpoint, recipe, place, limits, folder, traced, progress)
        except ExportError as error:
            if not traced.recognised:
                raise
            progress(f"again, with attention as it was traced: {error}")
            traced = _trace(checkpoint, recipe, limits, progress, recognise=False)
            done = _make(checkpoint, recipe, place, limits, folder, traced, progress)
        notes = place.finish(folder, done.manifest, recipe)
    return replace(done, path=out, notes=(*done.notes, *notes))


def _make(
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: Layout,
    limits: Limits,
    folder: Path,
    traced: Traced,
    progress: Progress,
) -> Exported:
    """Derive, rewrite, write and verify the graphs of a traced model; the manifest is not written yet."""
    graphs, left_out = _derive(traced.trace, recipe, layout)
    bare = _structure(traced)
    for graph in graphs:
        apply_rewrites(graph.trace, graph.head, recipe, limits)
    progress(f"writing {_megabytes(traced.trace.weight_bytes)} of weights")
    weights = layout.weights(folder, traced.trace.weight_bytes)
    for graph in graphs:
        weights.take(graph.trace.weights)
    weights_file = weights.close()
    for graph in graphs:
        graph.file = write_graph(graph.trace.model, weights, folder / layout.graph_name(graph.head))
    traced = _let_go(bare, graphs)
    progress(f"checking {', '.join(graph.file.file for graph in graphs if graph.file)}")
    graphs = verify_graphs(graphs, left_out, traced, checkpoint.architecture.strict, recipe, limits, weights, folder)
    lost = quantize_cache(graphs, left_out, traced, recipe, limits, weights, folder, progress)
    tokenizer = write_tokenizer(recipe.tokenizer, folder) if recipe.tokenizer is not None else None
    manifest = _describe(checkpoint, recipe, traced, graphs, left_out, weights_file, tokenizer)
    size = sum(entry.bytes for entry in (*manifest.graphs.values(), *([weights_file] if weights_file else [])))
    undone = (
        f"{graph.head.file}: {', '.join(graph.undone)} undone, which made it another function"
        for graph in graphs
        if graph.undone
    )
    notes = (*traced.notes, *undone, *lost)
    return Exported(folder, manifest, max(graph.error for graph in graphs), _run_of(recipe), size, notes)


def _trace(
    checkpoint: Checkpoint, recipe: Recipe, limits: Limits, progress: Progress, *, recognise: bool = True
) -> Traced:
    """Trace and normalize the model in the recipe's precision, and prepare it for the target."""
    precision = recipe.precision
    note = recipe.target.note(precision)
    notes = [note] if note is not None else []
    quantizer = precision.quantizer() if precision.quantizer is not None else None
    with Cast(checkpoint.model, precision.torch_dtype) as model:
        if quantizer is not None:
            notes += quantizer.prepare(model, checkpoint.architecture, limits, progress)
        progress(f"tracing at opset {recipe.opset}")
        trace = trace_logits(model, block_size=limits.block_size, opset=recipe.opset)
        normalize(trace, model, block_size=limits.block_size, vocab_size=checkpoint.vocab_size)
        with Cast(model, torch.float32) if needs_float32(recipe) else nullcontext():
            samples = take_samples(model, limits, longest=trace.longest)
    explain_nan(samples, checkpoint.model)
    if recognise:
        trace.audit.update(recognise_attention(trace, block_size=limits.block_size))
    recognised = any(row["achieved"] for row in trace.audit.values())
    if quantizer is not None:
        trace.audit.update(quantizer.quantize(trace))
    trace.audit.update(recipe.target.prepare(trace, precision))
    if recipe.pad_vocab:
        trace.audit.update(pad_rows(trace))
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    return Traced(trace, samples, parameters, tuple(notes), recognised)


def _derive(logits: Trace, recipe: Recipe, layout: Layout) -> tuple[list[HeadExport], dict[str, str]]:
    """The graph of each head that is asked for, or that the forward allows; and why others are left out."""
    graphs, left_out = [], {}
    for found in HEAD_GRAPHS.values():
        head = found.head
        if not recipe.wants(head) or not layout.holds(head):
            continue
        try:
            graphs.append(HeadExport(head, found.build(replace(logits, audit={}), recipe)))
        except ExportError as error:
            if recipe.heads is not None:
                raise ExportError(f"the graph {head} cannot be made: {error}. Leave {head} out of graphs.") from error
            left_out[head.name] = str(error)
    return graphs, left_out


def _structure(traced: Traced) -> Traced:
    """The normalized graph before it is rewritten, with no more weights than `decode` looks at: masks and positions."""
    trace = traced.trace
    on_tokens = Sizes(trace.graph, trace.weights).on_tokens
    apart = [node for node in trace.graph if not any(value in on_tokens for value in node.inputs)]
    masks = {value.name for node in trace.graph if node.op_type == ATTENTION for value in node.inputs[3:] if value}
    read = {value.name for node in apart for value in node.inputs if value is not None} | masks
    weights = {
        name: tensor
        for name, tensor in trace.weights.items()
        if name in read and tensor.numel() * tensor.element_size() <= LARGEST_TABLE
    }
    return replace(traced, trace=replace(trace, model=trace.model.clone(), weights=weights))


def _let_go(bare: Traced, graphs: list[HeadExport]) -> Traced:
    """Give the weights' memory back: they are on the disk, and ONNX Runtime needs the room."""
    for graph in graphs:
        graph.trace = replace(graph.trace, weights={})
    gc.collect()  # the traced program holds the weights in reference cycles
    return bare


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.2g} MB"


def _run_of(recipe: Recipe) -> Run:
    return Run.IN_FLOAT32 if needs_float32(recipe) else Run.AS_IT_IS


def _describe(
    checkpoint: Checkpoint,
    recipe: Recipe,
    traced: Traced,
    graphs: list[HeadExport],
    left_out: dict[str, str],
    weights_file: FileEntry | None,
    tokenizer: TokenizerEntry | None,
) -> Manifest:
    """What was made, and what was made sure of.

    Raises:
        ExportError: of an architecture of ours fewer operations are whole, or fused, than there should be.
    """
    target, precision = recipe.target, recipe.precision
    logits = graphs[0]
    audit = {**traced.trace.audit, **logits.trace.audit}
    if not recipe.target.rewrites(recipe.precision):
        counts = Counter(node.op_type for node in logits.trace.graph)
        audit = {**compare_counts(traced.trace.expected, counts), **audit}
    if checkpoint.architecture.strict:
        check_audit(audit)
    run = _run_of(recipe)
    checked = {"run": run.value + run.unchecked}
    if target.checked is not None:
        checked["kernels"] = target.checked()
    if (lost := next((g.cache_kl for g in graphs if g.cache_kl is not None), None)) is not None:
        checked["cache in 8 bits"] = f"loses a mean KL divergence of {lost:.1e} on text of the model's own"
    if undone := "; ".join(f"{g.head}: {', '.join(g.undone)}" for g in graphs if g.undone):
        checked["rewrites undone"] = undone
    return Manifest(
        model={"architecture": checkpoint.architecture.name, **checkpoint.config.to_dict()},
        source={
            "format": checkpoint.format,
            "sha256": checkpoint.sha256,
            **{f"{item.name}_source": checkpoint.assumed.get(item.name) for item in ASSUMPTIONS},
            "options": dict(checkpoint.options),
        },
        dtype=precision.dtype,
        target=target.name,
        opset=recipe.opset,
        graphs={graph.head.name: graph.file for graph in graphs if graph.file is not None},
        weights=weights_file,
        parameters=traced.parameters,
        quantize=precision.quantize,
        cache="int8" if recipe.quantize_cache else None,
        producer=_versions(),
        audit=audit,
        left_out=left_out,
        checked=checked,
        expected_kernels=target.expected_kernels(precision, {a.head_size for a in attentions(traced.trace.graph)}),
        tokenizer=tokenizer,
        text=checkpoint.text,
        runs_on=target.runs_on(precision),
        on_cpu=tuple(graph.head.name for graph in graphs if graph.head.cached and target.cached_on_cpu),
    )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("gptexport", "torch", "onnx", "onnxscript")}
    return {**packages, "python": platform.python_version()}
