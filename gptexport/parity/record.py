"""The verdict in the manifest, bound by hash to what it was measured on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptexport.engine import record_parity
from gptexport.errors import OutputError
from gptexport.parity.verdict import Verdict
from gptexport.staging import update_file
from gptexport_runtime import Session
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import MANIFEST_FILE


def record_verdict(artifact: Path, session: Session, verdict: Verdict, checkpoint_sha256: str) -> None:
    """Write the verdict beside what it is about, whole or not at all. No date: a rerun writes the same bytes.

    Into a bundle's manifest, or an engine's sidecar. A lone graph has no place for it.

    Raises:
        OutputError: it cannot be written there, or what is there now is not what was measured.
    """
    record = verdict.to_dict()
    for long in ("by_position", "by_row"):
        if record["summary"] is not None:
            del record["summary"][long]
    record["checkpoint_sha256"] = checkpoint_sha256
    record["versions"] = {name: version(name) for name in ("gptexport", "gptexport-runtime", "torch")}
    manifest = session.manifest
    if manifest is not None:
        record["graphs_sha256"] = {kind: entry.sha256 for kind, entry in manifest.graphs.items()}
        record["weights_sha256"] = manifest.weights.sha256 if manifest.weights else None
        folder = artifact if artifact.is_dir() else artifact.parent
        update_file(folder / MANIFEST_FILE, partial(_with_record, manifest, record))
    elif session.engine is not None:
        sha256 = session.engine.engine.sha256
        record_parity(artifact, {**record, "engine_sha256": sha256}, measured=sha256)


def _with_record(measured: Manifest, record: Mapping[str, Any], old: bytes) -> bytes:
    """The manifest that is there now, with the verdict.

    Raises:
        OutputError: the bundle is not the one that was measured.
    """
    now = Manifest.from_json(old.decode("utf-8", "replace"))
    if (now.graphs, now.weights) != (measured.graphs, measured.weights):
        raise OutputError("the bundle was replaced while it was measured: the verdict is not of the new one.")
    return replace(now, parity=record).to_json().encode()


def environment(artifact: Path, checkpoint: str, session: Session, checkpoint_sha256: str) -> dict[str, Any]:
    """What the measurements are of and what they ran on, for the report."""
    manifest = session.manifest
    found: dict[str, Any] = {"artifact": artifact.name, "checkpoint": Path(checkpoint).name}
    if manifest is not None:
        found |= {"target": manifest.target, "opset": manifest.opset, "dtype": manifest.dtype}
        found |= {f"{kind} graph sha256": entry.sha256 for kind, entry in manifest.graphs.items()}
        found["weights sha256"] = manifest.weights.sha256 if manifest.weights else "in the graphs"
    if (engine := session.engine) is not None:
        found |= {"built by": f"{engine.flavour} {engine.version}", "dtype": engine.dtype}
        found |= {
            "profiles": "; ".join(map(str, engine.profiles)),
            "compiled for": ", ".join(engine.compute_capabilities),
        }
        found |= {"built with": ", ".join(name for name, value in engine.options.items() if value) or "no options"}
        found |= {f"{name} sha256": sha256 for name, sha256 in engine.onnx.items()}
        found["engine sha256"] = engine.engine.sha256
    found |= {"checkpoint sha256": checkpoint_sha256, "backend": f"{session.backend} on {session.device}"}
    found |= {"threads": session.threads, "machine": f"{platform.system()} {platform.machine()}"}
    found["python"] = platform.python_version()
    for name in ("gptexport", "gptexport-runtime", "torch", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu goes by another name
            continue
    return found
