"""`gptexport inspect`: what is this file?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.engine_text import engine_text
from gptexport.cli.output import Output, facts, output_options, size
from gptexport_runtime.contract.certificate import why_stale
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.engine_file import ENGINE_SUFFIX, EngineInfo, TensorInfo, read_engine_info

if TYPE_CHECKING:
    from gptexport.artifacts import BundleInfo, GraphInfo
    from gptexport.checkpoints import CheckpointInfo


@click.command(short_help="Say what a checkpoint, bundle, graph or engine is.")
@click.argument("path")
@click.option(
    "--verify",
    is_flag=True,
    help="Of a bundle: check the sha256 of the weights even where no parity verdict asks for it.",
)
@output_options("inspect")
@click.pass_context
def inspect(ctx: click.Context, output: Output, path: str, verify: bool) -> None:
    """Say what PATH is: a checkpoint, a bundle, an .onnx graph or an engine. Never executes anything in it.

    \b
    Examples:
      gptexport inspect out/ckpt.pt
      gptexport inspect gpt2/ --verify
      gptexport inspect gpt2/logits.onnx --json
      gptexport inspect gpt2.engine                without a GPU, and without TensorRT
    """
    place = Path(path)
    if place.name == MANIFEST_FILE:
        place = place.parent
    if (place / MANIFEST_FILE).is_file():
        from gptexport.artifacts import inspect_bundle

        bundle = inspect_bundle(place, verify=verify)
        output.result(
            {"ok": not bundle.problems, "kind": "bundle", "path": path, **_bundle_json(bundle)}, _bundle_text(bundle)
        )
        if bundle.problems:
            ctx.exit(1)
    elif place.suffix == ENGINE_SUFFIX and place.is_file():
        engine = read_engine_info(place)
        stale = why_stale(engine)
        data = {"kind": "engine", "path": path, **asdict(engine), "problems": [stale] if stale else []}
        output.result({"ok": stale is None, **data}, _engine_text(engine))
        if stale:
            ctx.exit(1)
    elif place.suffix == ".onnx" and place.is_file():
        from gptexport.artifacts import inspect_graph

        graph = inspect_graph(place)
        output.result({"ok": True, "kind": "graph", "path": path, **asdict(graph)}, _graph_text(graph))
    else:
        from gptexport.checkpoints import describe_checkpoint

        info = describe_checkpoint(path)
        data = {**asdict(info), "config": info.config.to_dict() if info.config else None}
        output.result({"ok": info.readable, "kind": "checkpoint", "path": path, **data}, _checkpoint_text(info))
        if not info.readable:
            ctx.exit(5)


def _bundle_json(bundle: BundleInfo) -> dict[str, Any]:
    return {
        "manifest": asdict(bundle.manifest),
        "graphs": {kind: asdict(graph) for kind, graph in bundle.graphs.items()},
        "bytes": bundle.bytes,
        "problems": bundle.problems,
    }


def _bundle_text(bundle: BundleInfo) -> str:
    manifest = bundle.manifest
    rows: list[tuple[str, object]] = [
        (
            "bundle",
            f"{manifest.target}, {manifest.quantize or manifest.dtype}, opset {manifest.opset}, {size(bundle.bytes)}",
        ),
        *((f"no {kind}.onnx", reason) for kind, reason in manifest.left_out.items()),
        ("tokenizer", manifest.tokenizer.name if manifest.tokenizer else None),
        ("model", _config_line(manifest.model)),
        ("parameters", f"{manifest.parameters:,}"),
        ("source", f"{manifest.source.get('format')}, sha256 {str(manifest.source.get('sha256'))[:16]}…"),
        ("GELU", _gelu(manifest.model.get("gelu"), manifest.source.get("gelu_source"))),
        *((f"checked: {what}", how) for what, how in manifest.checked.items()),
        ("parity", _verdict(manifest)),
        ("written by", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())),
    ]
    graphs = "\n\n".join(_graph_text(graph) for graph in bundle.graphs.values())
    problems = "".join(f"\nproblem: {problem}" for problem in bundle.problems)
    return f"{facts(rows)}\n\n{graphs}{problems}"


def _verdict(described: Manifest | EngineInfo) -> str:
    parity = described.parity
    if parity is None:
        return "not checked: gptexport parity"
    ratio = f", noise ratio {parity['noise_ratio']:.2f}" if isinstance(parity.get("noise_ratio"), float) else ""
    of = "this engine" if isinstance(described, EngineInfo) else "these graphs and weights"
    return (
        ("passed" if parity.get("passed") else "FAILED")
        + ratio
        + (f", but not of {of}" if why_stale(described) else "")
    )


def _graph_text(graph: GraphInfo) -> str:
    def signature(axes: Mapping[str, list[str | int]]) -> str:
        return ", ".join(f"{name} ({','.join(map(str, dims))})" for name, dims in axes.items())

    limits = f"T ≤ {graph.block_size or 'not said'}, ids < {graph.vocab_size or 'not said'}"
    return facts(
        [
            ("graph", f"{graph.file}, {size(graph.bytes)}, {graph.producer}"),
            ("interface", f"{signature(graph.inputs)} -> {signature(graph.outputs)}"),
            ("limits", limits),
            ("opset", ", ".join(f"{domain or 'onnx'} {version}" for domain, version in graph.opset.items())),
            ("weights", f"{graph.parameters:,} in {', '.join(graph.external_data) or 'the graph itself'}"),
            ("nodes", ", ".join(f"{count} {op}" for op, count in graph.nodes.items())),
        ]
    )


def _engine_text(info: EngineInfo) -> str:
    def signature(tensors: tuple[TensorInfo, ...]) -> str:
        return ", ".join(f"{item.name} {item.dtype} ({','.join(map(str, item.shape))})" for item in tensors)

    rows: list[tuple[str, object]] = [
        ("interface", f"{signature(info.inputs)} -> {signature(info.outputs)}"),
        ("model", _config_line(info.model)),
        ("built from", ", ".join(f"{name} {sha256[:16]}…" for name, sha256 in info.onnx.items())),
        ("options", ", ".join(name for name, value in info.options.items() if value) or "none"),
        ("parity", _verdict(info)),
        ("rebuild", info.rebuild_command),
    ]
    problem = f"\nproblem: {stale}" if (stale := why_stale(info)) else ""
    return f"{engine_text(info)}\n\n{facts(rows)}{problem}"


def _checkpoint_text(info: CheckpointInfo) -> str:
    rows: list[tuple[str, object]] = [
        ("format", info.format),
        ("what", info.description),
        ("model", _config_line(info.config.to_dict()) if info.config else None),
        ("parameters", f"{info.parameters:,}" if info.parameters is not None else None),
        ("head", None if info.tied is None else "tied to wte" if info.tied else "its own weights"),
        ("GELU", _gelu(info.config.gelu, info.gelu_source) if info.config else None),
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
