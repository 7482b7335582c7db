"""Rewrite the graphs of an export, check them, and write one again without the rewrite that made it wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from gptexport.errors import ExportError
from gptexport.export.cache_scales import divergence, write_text
from gptexport.export.heads import HEAD_GRAPHS
from gptexport.export.irtools import MICROSOFT
from gptexport.export.targets import PORTABLE
from gptexport.export.trace import Trace
from gptexport.export.verify import Sample, check_audit, check_graph, check_numbers
from gptexport.export.write import Weights, write_graph
from gptexport.recipe import Limits, Recipe
from gptexport_runtime.contract.heads import DECODE, LOGITS, Head
from gptexport_runtime.contract.model import FileEntry
from gptexport_runtime.errors import BackendUnavailableError

CACHED = "fused attention over the cache"


@dataclass(frozen=True)
class Traced:
    """A model as it was traced, normalized and prepared for its target."""

    trace: Trace
    samples: list[Sample]  # what the eager model says
    parameters: int
    notes: tuple[str, ...]
    recognised: bool  # attention was made one node of what was traced


@dataclass
class HeadExport:
    """A head's graph on its way to the disk."""

    head: Head
    trace: Trace
    file: FileEntry | None = None
    undone: list[str] = field(default_factory=list)  # rewrites that made it another function
    error: float = 0.0  # relative RMS from eager
    cache_kl: float | None = None  # nats that a cache in 8 bits loses; None: it has none


def apply_rewrites(trace: Trace, head: Head, recipe: Recipe, limits: Limits, skip: Collection[str] = ()) -> None:
    """Apply the target's rewrites to one head's graph, in place; its audit says what they did."""
    on_cpu = head.cached and recipe.target.cached_on_cpu
    rewrites = [
        rewrite
        for rewrite in recipe.target.rewrites(recipe.precision)
        if rewrite.name not in skip and (rewrite.on_cpu or not on_cpu)
    ]
    for rewrite in rewrites:
        trace.audit.update(rewrite.apply(trace.graph, limits))
    if rewrites:
        RemoveUnusedNodesPass()(trace.model)
        NameFixPass()(trace.model)  # what is put into a loop's body may be called as something outside is
        trace.graph.opset_imports[MICROSOFT] = 1


def verify_graphs(
    graphs: list[HeadExport],
    left_out: dict[str, str],
    traced: Traced,
    strict: bool,
    recipe: Recipe,
    limits: Limits,
    weights: Weights,
    folder: Path,
) -> list[HeadExport]:
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
    try:
        return check_numbers(path, head, samples, recipe)
    except BackendUnavailableError as error:
        if not recipe.precision.runs_on_cpu or not _casts_to_bfloat16(path):
            raise
        raise ExportError(
            f"the forward computes in bfloat16 by itself, as under autocast, which a CPU has no kernels for: "
            f"{str(error).replace(str(path), path.name)} "
            "Take that out of forward; the dtype of an export is asked for."
        ) from error


def _casts_to_bfloat16(path: Path) -> bool:
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    to = (attribute.i for node in nodes if node.op_type == "Cast" for attribute in node.attribute)
    return onnx.TensorProto.BFLOAT16 in to


def _undo(graph: HeadExport, traced: Traced, recipe: Recipe, limits: Limits, weights: Weights, path: Path) -> bool:
    """Write the graph again without what makes it wrong: each rewrite alone, else all. False: it stays wrong."""
    names = [rewrite.name for rewrite in recipe.target.rewrites(recipe.precision)]
    plain = replace(recipe, target=replace(recipe.target, attend=PORTABLE.attend))
    attempts = [([name], recipe, [name]) for name in names] + [([CACHED, *names], plain, names)]
    if graph.head.cached:
        attempts.insert(0, ([CACHED], plain, []))
    for undone, chosen, skip in attempts:
        try:
            trace, file = _make_again(graph, traced, chosen, limits, weights, path, skip)
            graph.error = _check(path, graph.head, traced.samples, chosen)
        except ExportError:
            continue
        graph.trace, graph.file, graph.undone = trace, file, undone
        return True
    return False


def _make_again(
    graph: HeadExport,
    traced: Traced,
    recipe: Recipe,
    limits: Limits,
    weights: Weights,
    path: Path,
    skip: Collection[str] = (),
) -> tuple[Trace, FileEntry]:
    """Make and write a head's graph by another recipe."""
    fresh = replace(traced.trace, model=traced.trace.model.clone(), audit={})
    trace = HEAD_GRAPHS[graph.head.name].build(fresh, recipe)
    apply_rewrites(trace, graph.head, recipe, limits, skip)
    return trace, write_graph(trace.model, weights, path)


def quantize_cache(
    graphs: list[HeadExport],
    left_out: Mapping[str, str],
    traced: Traced,
    recipe: Recipe,
    limits: Limits,
    weights: Weights,
    folder: Path,
    progress: Callable[[str], None],
) -> list[str]:
    """Write `decode` again with its keys and values in 8 bits, where that is asked for; it was checked before.

    Returns: what a person should know.

    Raises:
        ExportError: it cannot be; the message says why.
    """
    if not recipe.quantize_cache:
        return []
    graph = next((each for each in graphs if each.head is DECODE), None)
    in_8_bits = recipe.target.attend_in_8_bits
    assert in_8_bits is not None  # as the recipe made sure
    reason = left_out.get(DECODE.name) if graph is None else ", ".join(f"{each} is undone" for each in graph.undone)
    if graph is None or reason:
        raise ExportError(f"the cache cannot be quantized: {reason}. Leave quantize_cache out.")
    path = folder / DECODE.file
    progress("writing text of the model's own, to round its keys and values by")
    text = write_text(path, limits)
    narrow = path.with_name(f"{path.stem}.8-bits{path.suffix}")
    chosen = replace(recipe, target=replace(recipe.target, attend=lambda _precision: in_8_bits(text.scales)))
    try:
        trace, file = _make_again(graph, traced, chosen, limits, weights, narrow)
    except ExportError as error:
        raise ExportError(f"the cache cannot be quantized: {error}. Leave quantize_cache out.") from error
    try:
        graph.error = _check(narrow, graph.head, traced.samples, chosen)
    except ExportError as error:
        raise ExportError(
            "8 bits lose this model's keys or values, though not those of text of its own: some that it seldom has are "
            f"far larger. Leave quantize_cache out. ({error})"
        ) from error
    lost = divergence(path, narrow, text.judged)
    progress(f"keys and values in 8 bits lose a mean KL divergence of {lost:.1e} on such text")
    narrow.replace(path)
    graph.trace, graph.file, graph.cache_kl = trace, replace(file, file=path.name), lost
    allowed = recipe.precision.gates.steps_kl
    if allowed is not None and not lost <= allowed:
        return [
            f"keys and values in 8 bits lose a mean KL divergence of {lost:.1e} on text of the model's own, where "
            f"parity allows {allowed}: without quantize_cache nothing of it is lost"
        ]
    return []
