"""A loaded checkpoint becomes a bundle, or one .onnx: trace, normalize, derive, rewrite, write, verify, commit."""

from __future__ import annotations

import gc
import platform
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn as nn
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gptexport.assumptions import ASSUMPTIONS
from gptexport.casting import cast_copy, floating_dtypes
from gptexport.checkpoints import Checkpoint
from gptexport.errors import ExportError
from gptexport.export.attention import attentions
from gptexport.export.heads import HEAD_GRAPHS
from gptexport.export.irtools import MICROSOFT
from gptexport.export.layout import Layout, layout_for
from gptexport.export.normalize import normalize
from gptexport.export.rewrites.by_hand import recognise_attention
from gptexport.export.targets import PORTABLE
from gptexport.export.trace import Trace, trace_logits
from gptexport.export.verify import (
    Run,
    Sample,
    check_audit,
    check_graph,
    check_numbers,
    compare_counts,
    needs_float32,
    take_samples,
)
from gptexport.export.write import Weights, write_graph, write_tokenizer
from gptexport.recipe import DEFAULT_OPSET, Limits, Recipe
from gptexport.staging import staged
from gptexport.tokenizers import Travelling
from gptexport_runtime.contract.heads import LOGITS, Head
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.model import FileEntry

Progress = Callable[[str], None]
CACHED = "fused attention over the cache"


@dataclass(frozen=True)
class Exported:
    """What was written, and what was found on the way."""

    path: Path
    manifest: Manifest
    check_error: float  # worst relative RMS against eager, at shapes that were not traced
    run: Run  # how that was found
    bytes: int
    notes: tuple[str, ...] = ()  # what a person should be told


@dataclass(frozen=True)
class _Traced:
    """A model as it was traced, normalized and prepared for its target."""

    trace: Trace
    samples: list[Sample]  # what the eager model says
    parameters: int
    notes: tuple[str, ...]
    recognised: bool  # attention was made one node of what was traced


@dataclass
class _Graph:
    """A head's graph on its way to the disk."""

    head: Head
    trace: Trace
    file: FileEntry | None = None
    undone: list[str] = field(default_factory=list)  # rewrites that made it another function
    error: float = 0.0  # relative RMS from eager


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: str = "float32",
    target: str = "portable",
    quantize: str | None = None,
    graphs: Sequence[str] | None = None,
    tokenizer: Travelling | None = None,
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    progress: Progress = lambda _step: None,
) -> Exported:
    """Write `checkpoint` as a bundle folder, or as a single graph where `out` ends in .onnx. The model is not changed.

    Args:
        dtype: "float32", "float16" or "bfloat16".
        target: "portable" runs anywhere; "cpu" is rewritten for ONNX Runtime's CPU provider; "cuda" for its CUDA
            provider.
        quantize: "int8", with target "cpu".
        graphs: names of heads to write into the bundle; the logits are always there. None: all, less those that the
            forward does not allow.
        tokenizer: goes into the bundle.

    Raises:
        ExportError: the model cannot become the contract's graph, or the options do not go together; nothing is
            written.
        OutputExistsError: `out` is there and `force` is not given, or is not gptexport's to replace.
    """
    recipe = Recipe.of(dtype=dtype, target=target, quantize=quantize, graphs=graphs, opset=opset, tokenizer=tokenizer)
    return export(checkpoint, out, recipe, force=force, progress=progress)


def export(
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    force: bool = False,
    progress: Progress = lambda _step: None,
) -> Exported:
    """As `export_onnx`, by a recipe that was made before."""
    layout, limits = layout_for(out), Limits(block_size=checkpoint.block_size, vocab_size=checkpoint.predicted_ids)
    layout.check(recipe)
    _check_tokenizer(recipe, max(checkpoint.vocab_size, checkpoint.input_vocab_size or 0))
    with staged(out, force=force) as folder:
        traced = _trace(checkpoint, recipe, limits, progress)
        try:
            done = _make(checkpoint, recipe, layout, limits, folder, traced, progress)
        except ExportError as error:
            if not traced.recognised:
                raise
            progress(f"again, with attention as it was traced: {error}")
            traced = _trace(checkpoint, recipe, limits, progress, recognise=False)
            done = _make(checkpoint, recipe, layout, limits, folder, traced, progress)
        layout.finish(folder, done.manifest)
    return replace(done, path=out)


def _make(
    checkpoint: Checkpoint,
    recipe: Recipe,
    layout: Layout,
    limits: Limits,
    folder: Path,
    traced: _Traced,
    progress: Progress,
) -> Exported:
    """Derive, rewrite, write and verify the graphs of a traced model; the manifest is not written yet."""
    graphs, left_out = _derive(traced.trace, recipe, layout)
    bare = _structure(traced)
    for graph in graphs:
        _rewrite(graph.trace, recipe, limits)
    progress(f"writing {traced.trace.weight_bytes / 1e6:,.0f} MB of weights")
    weights = layout.weights(folder, traced.trace.weight_bytes)
    for graph in graphs:
        weights.take(graph.trace.weights)
    weights_file = weights.close()
    for graph in graphs:
        graph.file = write_graph(graph.trace.model, weights, folder / layout.graph_name(graph.head))
    traced = _let_go(bare, graphs)
    progress(f"checking {', '.join(graph.file.file for graph in graphs if graph.file)}")
    graphs = _verify(graphs, left_out, traced, checkpoint.architecture.strict, recipe, limits, weights, folder)
    manifest = _describe(checkpoint, recipe, traced, graphs, left_out, weights_file, folder)
    size = sum(entry.bytes for entry in (*manifest.graphs.values(), *([weights_file] if weights_file else [])))
    undone = (
        f"{graph.head.file}: {', '.join(graph.undone)} undone, which made it another function"
        for graph in graphs
        if graph.undone
    )
    notes = (*traced.notes, *undone)
    return Exported(folder, manifest, max(graph.error for graph in graphs), _run_of(recipe), size, notes)


def _check_tokenizer(recipe: Recipe, vocab_size: int) -> None:
    tokenizer = recipe.tokenizer
    if tokenizer is not None and tokenizer.size > vocab_size:
        raise ExportError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the model's vocabulary {vocab_size}: "
            "it is not this model's."
        )


def _trace(
    checkpoint: Checkpoint, recipe: Recipe, limits: Limits, progress: Progress, *, recognise: bool = True
) -> _Traced:
    """Trace and normalize a copy of the model in the recipe's precision, and prepare it for the target."""
    precision, notes = recipe.precision, []
    quantizer = precision.quantizer() if precision.quantizer is not None else None
    model = _in_dtype(checkpoint.model, precision.torch_dtype, copied=quantizer is not None)
    if quantizer is not None:
        progress("moving the activations' outliers into the weights")
        if (note := quantizer.prepare(model, checkpoint.architecture, limits)) is not None:
            notes.append(note)
    progress(f"tracing at opset {recipe.opset}")
    trace = trace_logits(model, block_size=limits.block_size, opset=recipe.opset)
    normalize(trace, model, block_size=limits.block_size, vocab_size=checkpoint.vocab_size)
    if recognise:
        trace.audit.update(recognise_attention(trace, block_size=limits.block_size))
    recognised = any(row["achieved"] for row in trace.audit.values())
    reference = _in_dtype(model, torch.float32) if needs_float32(recipe) else model
    samples = take_samples(reference, checkpoint.model, limits, longest=trace.longest)
    if quantizer is not None:
        trace.audit.update(quantizer.quantize(trace))
    trace.audit.update(recipe.target.prepare(trace, precision))
    return _Traced(trace, samples, sum(p.numel() for p in model.parameters()), tuple(notes), recognised)


def _in_dtype(model: nn.Module, dtype: torch.dtype, *, copied: bool = False) -> nn.Module:
    """The model, or where it has to be cast, or may be changed, a copy; tensors that need no cast are shared."""
    if floating_dtypes(model) <= {dtype} and not copied:
        return model
    try:
        return cast_copy(model, dtype)
    except Exception as error:  # whatever a user's module holds
        raise ExportError(
            f"the module cannot be copied, as {str(dtype).removeprefix('torch.')} needs: {type(error).__name__}: "
            f"{error}. Export it in float32, or take what cannot be copied out of the module."
        ) from error


def _derive(logits: Trace, recipe: Recipe, layout: Layout) -> tuple[list[_Graph], dict[str, str]]:
    """The graph of each head that is asked for, or that the forward allows; and why others are left out."""
    graphs, left_out = [], {}
    for found in HEAD_GRAPHS.values():
        head = found.head
        if not recipe.wants(head) or not layout.holds(head):
            continue
        try:
            graphs.append(_Graph(head, found.build(replace(logits, audit={}), recipe)))
        except ExportError as error:
            if recipe.heads is not None:
                raise ExportError(f"the graph {head} cannot be made: {error}. Leave {head} out of graphs.") from error
            left_out[head.name] = str(error)
    return graphs, left_out


def _rewrite(trace: Trace, recipe: Recipe, limits: Limits, skip: Collection[str] = ()) -> None:
    """Apply the target's rewrites to one graph, in place; its audit says what they did."""
    rewrites = [r for r in recipe.target.rewrites(recipe.precision) if r.name not in skip]
    for rewrite in rewrites:
        trace.audit.update(rewrite.apply(trace.graph, limits))
    if rewrites:
        RemoveUnusedNodesPass()(trace.model)
        trace.graph.opset_imports[MICROSOFT] = 1


def _structure(traced: _Traced) -> _Traced:
    """The normalized graph before it is rewritten, without the weights."""
    return replace(traced, trace=replace(traced.trace, model=traced.trace.model.clone(), weights={}))


def _let_go(bare: _Traced, graphs: list[_Graph]) -> _Traced:
    """Give the weights' memory back: they are on the disk, and ONNX Runtime needs the room."""
    for graph in graphs:
        graph.trace = replace(graph.trace, weights={})
    gc.collect()  # the traced program holds the weights in reference cycles
    return bare


def _verify(
    graphs: list[_Graph],
    left_out: dict[str, str],
    traced: _Traced,
    strict: bool,
    recipe: Recipe,
    limits: Limits,
    weights: Weights,
    folder: Path,
) -> list[_Graph]:
    """Check every written graph. One that a rewrite made wrong is written again without it.

    Returns: those that are right. `left_out` says of the others why: a head is inferred from the user's forward, so a
    mismatch need not be a bug, unless the head was asked for.
    """
    right = []
    for graph in graphs:
        assert graph.file is not None
        path = folder / graph.file.file
        try:
            graph.error = _check(path, graph.head, traced.samples, recipe)
        except ExportError as error:
            if not _undo(graph, traced, recipe, limits, weights, path):
                if strict or recipe.heads is not None or graph.head is LOGITS:
                    raise
                left_out[graph.head.name] = str(error)
                path.unlink()
                continue
        if strict:
            check_audit(graph.trace.audit)
        right.append(graph)
    return right


def _check(path: Path, head: Head, samples: Sequence[Sample], recipe: Recipe) -> float:
    check_graph(path, head)
    recipe.target.check(path, head)
    return check_numbers(path, head, samples, recipe)


def _undo(graph: _Graph, traced: _Traced, recipe: Recipe, limits: Limits, weights: Weights, path: Path) -> bool:
    """Write the graph again without what makes it wrong: each rewrite alone, else all. False: it stays wrong."""
    names = [rewrite.name for rewrite in recipe.target.rewrites(recipe.precision)]
    plain = replace(recipe, target=replace(recipe.target, attend=PORTABLE.attend))
    attempts = [([name], recipe, [name]) for name in names] + [([CACHED, *names], plain, names)]
    if graph.head.cached:
        attempts.insert(0, ([CACHED], plain, []))
    for undone, chosen, skip in attempts:
        fresh = replace(traced.trace, model=traced.trace.model.clone(), audit={})
        trace = HEAD_GRAPHS[graph.head.name].build(fresh, chosen)
        _rewrite(trace, recipe, limits, skip)
        file = write_graph(trace.model, weights, path)
        try:
            graph.error = _check(path, graph.head, traced.samples, recipe)
        except ExportError:
            continue
        graph.trace, graph.file, graph.undone = trace, file, undone
        return True
    return False


def _run_of(recipe: Recipe) -> Run:
    return Run.IN_FLOAT32 if needs_float32(recipe) else Run.AS_IT_IS


def _describe(
    checkpoint: Checkpoint,
    recipe: Recipe,
    traced: _Traced,
    graphs: list[_Graph],
    left_out: dict[str, str],
    weights_file: FileEntry | None,
    folder: Path,
) -> Manifest:
    target, precision = recipe.target, recipe.precision
    logits = graphs[0]
    audit = {**traced.trace.audit, **logits.trace.audit}
    if not recipe.target.rewrites(recipe.precision):
        counts = Counter(node.op_type for node in logits.trace.graph)
        audit = {**compare_counts(traced.trace.expected, counts), **audit}
    if checkpoint.architecture.strict:
        check_audit(audit)
    checked = {"run": _run_of(recipe).value}
    if target.checked is not None:
        checked["kernels"] = target.checked()
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
        producer=_versions(),
        audit=audit,
        left_out=left_out,
        checked=checked,
        expected_kernels=target.expected_kernels(precision, {a.head_size for a in attentions(traced.trace.graph)}),
        tokenizer=write_tokenizer(recipe.tokenizer, folder) if recipe.tokenizer is not None else None,
        text=checkpoint.text,
        runs_on=target.runs_on(precision),
    )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("gptexport", "torch", "onnx", "onnxscript")}
    return {**packages, "python": platform.python_version()}
