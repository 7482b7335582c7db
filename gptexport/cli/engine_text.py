"""What an engine is, for people: shared by `trt`, which made it, and `inspect`."""

from __future__ import annotations

from gptexport.cli.output import facts, size
from gptexport_runtime.contract.engine import EngineInfo


def engine_text(info: EngineInfo) -> str:
    """The facts that a user needs to run the engine."""
    rows: list[tuple[str, object]] = [
        ("engine", f"{info.engine.file}, {size(info.engine.bytes)}, {info.flavour} {info.version}"),
        ("runs on", f"{gpus(info)}, {_requirement(info)}"),
        ("built on", info.built_on["name"] if info.built_on else "a machine without a GPU: compiled, never run there"),
        *(("profile", _profile(info, index)) for index in range(len(info.profiles))),
        ("weights", f"{size(info.weight_bytes)}, {info.dtype}{', TF32' if info.options.get('tf32') else ''}"),
        ("attention", _attention(info)),
    ]
    return facts(rows)


def _profile(info: EngineInfo, index: int) -> str:
    profile = info.profiles[index]
    known = len(info.activation_bytes) == len(info.profiles)
    activations = f"; {size(info.activation_bytes[index])} of activations" if known else ""
    return f"{profile}, fastest at {'x'.join(map(str, profile.opt))}{activations}"


def gpus(info: EngineInfo) -> str:
    return " and ".join("SM" + target.replace(".", "") for target in info.compute_capabilities)


def _requirement(info: EngineInfo) -> str:
    if info.options.get("version_compatible"):
        return f"with {info.flavour} {info.version} or newer"
    return f"with {info.flavour} {info.version} and no other version"


def _attention(info: EngineInfo) -> str | None:
    fused, decomposed = info.graph.get("fused_attention"), info.graph.get("decomposed_attention")
    if decomposed:
        return f"{decomposed} layers that may hold the scores (B, n_head, T, T) in memory: no kernel for {info.dtype}"
    return f"{fused} layers of one kernel each, without the scores in memory" if fused else None
