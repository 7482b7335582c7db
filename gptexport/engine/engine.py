"""A bundle or an .onnx becomes an engine and its sidecar, both or neither."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptexport.engine.build import Plan, Request, build_plan
from gptexport.engine.cancel import Progress
from gptexport.engine.edition import BuildOptions, Library
from gptexport.engine.prepare import Prepared, prepare_graph
from gptexport.engine.source import Source
from gptexport.errors import EngineError, OutputError
from gptexport.staging import staged, update_file, write_file
from gptexport_runtime.artifact import ENGINE_SUFFIX, is_engine
from gptexport_runtime.contract.engine import EngineInfo, Profile, TensorInfo, sidecar_path
from gptexport_runtime.contract.model import FileEntry
from gptexport_runtime.contract.names import AXIS_B, AXIS_T, INPUT_IDS, LOGITS
from gptexport_runtime.engine_file import read_engine_info


@dataclass(frozen=True)
class BuiltEngine:
    """What was written, and what TensorRT warned of."""

    path: Path
    info: EngineInfo
    warnings: tuple[str, ...]


def build_engine(
    library: Library,
    source: Source,
    out: Path,
    *,
    profiles: Sequence[Profile],
    targets: Sequence[str],
    options: BuildOptions | None = None,
    force: bool = False,
    progress: Progress = lambda _phase, _done: None,
) -> BuiltEngine:
    """Build an engine from `source` and write it to `out`, with its sidecar beside it.

    The same graph, version, profiles, targets and options give the same bytes.

    Raises:
        EngineError: TensorRT cannot parse or build the graph; nothing is written.
        OutputExistsError: `out` is there and `force` is not given, or is not gptexport's to replace.
        OutputError: `out` cannot be written.
        KeyboardInterrupt: Ctrl-C; nothing is written.
    """
    if not is_engine(out):
        raise EngineError(f"{out} is no name for an engine; expected a file that ends in {ENGINE_SUFFIX}.")
    options = options or BuildOptions()
    with staged(out, force=force) as folder:
        graph, prepared = prepare_graph(source.graph)
        request = Request(library, source, graph.SerializeToString(), profiles, targets, options)
        plan = build_plan(request, progress)
        write_file(folder / out.name, plan.data)
        entry = FileEntry(file=out.name, bytes=plan.data.nbytes, sha256=hashlib.sha256(plan.data).hexdigest())
        info = _describe(request, entry, plan, prepared)
        write_file(folder / sidecar_path(out).name, info.to_json().encode())
    return BuiltEngine(out, info, plan.warnings)


def record_parity(engine: Path, record: Mapping[str, Any], *, measured: str | None = None) -> None:
    """Write a verdict into the engine's sidecar, whole or not at all. The engine itself is not touched.

    Args:
        measured: sha256 of the engine that the verdict is of; None: of whatever is there.

    Raises:
        ArtifactError: the engine or its sidecar is missing or damaged, or they do not belong together.
        OutputError: the sidecar cannot be written, or the verdict is of another engine.
    """
    read_engine_info(engine)
    sidecar = sidecar_path(engine)

    def change(old: bytes) -> bytes:
        info = EngineInfo.from_json(old.decode("utf-8", "replace"), str(sidecar))
        if measured not in (None, info.engine.sha256):
            raise OutputError(f"{engine} was replaced while it was measured: the verdict is not of the new one.")
        return replace(info, parity=dict(record)).to_json().encode()

    update_file(sidecar, change)


def _describe(request: Request, entry: FileEntry, plan: Plan, prepared: Prepared) -> EngineInfo:
    library, source, options = request.library, request.source, request.options
    asked = asdict(options)
    asked["timing_cache"] = options.timing_cache is not None  # a path is this machine's
    return EngineInfo(
        engine=entry,
        flavour=library.edition.name,
        version=library.version,
        compute_capabilities=tuple(request.targets),
        built_on=asdict(library.gpu) if library.gpu else None,
        options=asked,
        onnx=dict(source.hashes),
        model=dict(source.model),
        dtype=source.dtype,
        inputs=(TensorInfo(name=INPUT_IDS, dtype="int64", shape=(AXIS_B, AXIS_T)),),
        outputs=(TensorInfo(name=LOGITS, dtype="float32", shape=(AXIS_B, AXIS_T, source.vocab_size)),),
        profiles=tuple(request.profiles),
        activation_bytes=plan.activation_bytes,
        weight_bytes=plan.weight_bytes,
        graph={
            **asdict(prepared),
            "fused_attention": plan.fused_attention,
            "decomposed_attention": plan.decomposed_attention,
        },
        producer={"gptexport": version("gptexport"), **_onnx_producer(source)},
        source=dict(source.manifest.source) if source.manifest else {},
    )


def _onnx_producer(source: Source) -> dict[str, str]:
    return dict(source.manifest.producer) if source.manifest else {"graph": source.graph.producer_name}
