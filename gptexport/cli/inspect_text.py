"""What `gptexport inspect` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from gptexport.artifacts import Artifact, Bundle, Engine, Inspection, SingleGraph
from gptexport.cli.engine_text import engine_text
from gptexport.cli.output import facts, size
from gptexport.cli.parity_text import figure, name_of
from gptexport_runtime.contract.engine import EngineInfo, TensorInfo
from gptexport_runtime.contract.manifest import Manifest

CACHE = re.compile(r"(past|present)_(key|value)_\d+")

if TYPE_CHECKING:
    from gptexport.checkpoints import CheckpointInfo


def artifact_text(artifact: Artifact, found: Inspection, *, verbose: bool = False, verified: bool = False) -> str:
    """The facts of an artifact of any kind, and what is wrong with it; `verbose`: its graphs in detail too."""
    text = _text(artifact, found, verbose)
    if verified and not found.problems:
        text += "\nverified: every file has the SHA-256 that it was written with"
    return text + "".join(f"\nproblem: {problem}" for problem in found.problems)


@singledispatch
def _text(artifact: object, _found: Inspection, _verbose: bool) -> str:
    raise NotImplementedError(f"no text for {type(artifact).__name__}")


@_text.register
def _(bundle: Bundle, found: Inspection, verbose: bool) -> str:
    manifest, data = bundle.manifest, found.data
    precision = manifest.quantize or manifest.dtype
    cache = f", cache {manifest.cache}" if manifest.cache else ""
    what = f"{manifest.target}, {precision}{cache}, opset {manifest.opset}, {size(data['bytes'])}"
    rows: list[tuple[str, object]] = [
        ("bundle", what),
        *((f"no {kind}.onnx", reason) for kind, reason in manifest.left_out.items()),
        ("tokenizer", manifest.tokenizer.name if manifest.tokenizer else None),
        ("model", _config_line(manifest.model)),
        ("parameters", f"{manifest.parameters:,}"),
        ("source", f"{manifest.source.get('format')}, sha256 {str(manifest.source.get('sha256'))[:16]}…"),
        ("GELU", _gelu(manifest.model.get("gelu"), manifest.source.get("gelu_source"))),
        ("checked", "; ".join(f"{what} {how}" for what, how in manifest.checked.items()) or None),
        ("parity", _certificate(manifest, "these graphs and weights")),
        ("written by", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())),
    ]
    graphs = data["graphs"].values()
    if verbose:
        return "\n\n".join([facts(rows), *map(_graph_text, graphs)])
    short = [(graph["file"], f"{_interface(graph)}; {size(graph['bytes'])}") for graph in graphs]
    return f"{facts(rows)}\n\n{facts(short)}"


@_text.register
def _(_graph: SingleGraph, found: Inspection, _verbose: bool) -> str:
    return _graph_text(found.data)


@_text.register
def _(engine: Engine, _found: Inspection, _verbose: bool) -> str:
    def signature(tensors: tuple[TensorInfo, ...]) -> str:
        return ", ".join(f"{item.name} {item.dtype} ({','.join(map(str, item.shape))})" for item in tensors)

    info = engine.info
    rows: list[tuple[str, object]] = [
        ("interface", f"{signature(info.inputs)} -> {signature(info.outputs)}"),
        ("model", _config_line(info.model)),
        ("built from", ", ".join(f"{name} {sha256[:16]}…" for name, sha256 in info.onnx.items())),
        ("options", ", ".join(name for name, value in info.options.items() if value) or "none"),
        ("parity", _certificate(info, "this engine")),
        ("rebuild", info.rebuild_command),
    ]
    return f"{engine_text(info)}\n\n{facts(rows)}"


def _certificate(described: Manifest | EngineInfo, of: str) -> str:
    parity = described.parity
    if parity is None:
        return "not checked: gptexport parity"
    device = f" on {parity['device']}" if isinstance(parity.get("device"), str) else ""
    stale = f", but not of {of}" if described.why_stale() else ""
    return ("passed" if parity.get("passed") else "FAILED") + device + _measured(parity) + stale


def _measured(parity: Mapping[str, Any]) -> str:
    """The figures that were judged: of quantized weights those over all positions, else the noise ratio."""
    if not parity.get("passed") and (reasons := parity.get("reasons")):
        return f": {reasons[0]}"
    if statistics := parity.get("statistics"):
        return "".join(f", {name_of(each['gate'])} {figure(each['gate'], each['value'])}" for each in statistics)
    ratio = parity.get("noise_ratio")
    return f", noise ratio {ratio:.2f}" if isinstance(ratio, float) else ""


def _interface(graph: Mapping[str, Any]) -> str:
    """`input_ids (B,T) -> logits (B,T,V)`; the caches of a cached step are counted, not listed."""

    def side(axes: Mapping[str, list[str | int]]) -> str:
        caches = [name for name in axes if CACHE.fullmatch(name)]
        named = [f"{name} ({','.join(map(str, dims))})" for name, dims in axes.items() if name not in caches]
        return ", ".join([*named, *([f"{len(caches)} caches"] if caches else [])])

    return f"{side(graph['inputs'])} -> {side(graph['outputs'])}"


def _graph_text(graph: Mapping[str, Any]) -> str:
    def signature(axes: Mapping[str, list[str | int]]) -> str:
        return ", ".join(f"{name} ({','.join(map(str, dims))})" for name, dims in axes.items())

    limits = f"T ≤ {graph['block_size'] or 'not said'}, ids < {graph['vocab_size'] or 'not said'}"
    return facts(
        [
            ("graph", f"{graph['file']}, {size(graph['bytes'])}, {graph['producer']}"),
            ("interface", f"{signature(graph['inputs'])} -> {signature(graph['outputs'])}"),
            ("limits", limits),
            ("opset", ", ".join(f"{domain or 'onnx'} {version}" for domain, version in graph["opset"].items())),
            ("weights", f"{graph['parameters']:,} in {', '.join(graph['external_data']) or 'the graph itself'}"),
            ("nodes", ", ".join(f"{count} {op}" for op, count in graph["nodes"].items())),
        ]
    )


def checkpoint_text(info: CheckpointInfo) -> str:
    """The facts of a checkpoint."""
    rows: list[tuple[str, object]] = [
        ("format", info.format),
        ("what", info.description),
        ("model", _config_line(info.config.to_dict()) if info.config else None),
        ("parameters", f"{info.parameters:,}" if info.parameters is not None else None),
        ("head", None if info.tied is None else "tied to wte" if info.tied else "its own weights"),
        ("GELU", _gelu(info.config.to_dict().get("gelu"), info.assumed.get("gelu")) if info.config else None),
        ("stored as", ", ".join(f"{dtype} ({count} tensors)" for dtype, count in info.dtypes.items()) or None),
        ("training", ", ".join(f"{name} {value}" for name, value in info.training.items()) or None),
        ("size", size(info.file_size) if info.file_size else None),
        ("unsafe", ", ".join(info.unsafe_globals) or None),
        *(("problem", problem) for problem in info.problems),
        *(("note", note) for note in info.notes),
    ]
    return facts(rows)


def _config_line(model: Mapping[str, Any]) -> str:
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "n_inner", "bias", "tied")
    return ", ".join(f"{name} {model[name]}" for name in names if model.get(name) is not None)


def _gelu(gelu: object, source: object) -> str | None:
    if gelu is None:
        return None
    known = {
        "checkpoint": "the checkpoint says so",
        "format": "assumed: the format's convention, the file does not say; --gelu overrides",
        "option": "as --gelu said",
    }
    return f"{gelu} ({known.get(str(source), 'not known how')})"
