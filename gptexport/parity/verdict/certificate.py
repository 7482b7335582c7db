"""The certificate: a verdict as it is recorded, bound by hash to what it was measured on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptexport.artifacts import Artifact
from gptexport.parity.verdict.judge import Verdict
from gptexport_runtime import Session

DISTRIBUTIONS = ("gptexport", "gptexport-runtime", "torch", "onnx", "onnxruntime", "numpy")


def certify(artifact: Artifact, verdict: Verdict, checkpoint_sha256: str, device: str) -> Path | None:
    """Record a verdict with the artifact, whole or not at all. No date: a rerun writes the same bytes.

    Args:
        device: where the artifact ran.

    Returns: the file that holds it now; None where the artifact has no place for it.

    Raises:
        GPTExportError, OSError: it cannot be written.
    """
    record = verdict.to_dict()
    for long in ("by_position", "by_row"):
        if record["summary"] is not None:
            del record["summary"][long]
    record |= {"checkpoint_sha256": checkpoint_sha256, "device": device}
    record["versions"] = {name: version(name) for name in ("gptexport", "gptexport-runtime", "torch")}
    return artifact.certify(record)


def environment(artifact: Artifact, checkpoint: str, session: Session, checkpoint_sha256: str) -> dict[str, Any]:
    """What the measurements are of and what they ran on, for the report."""
    found: dict[str, Any] = {"artifact": artifact.path.name, "checkpoint": Path(checkpoint).name, **artifact.facts()}
    found |= {"checkpoint sha256": checkpoint_sha256, "backend": f"{session.backend} on {session.device}"}
    found |= {"threads": session.threads, "machine": f"{platform.system()} {platform.machine()}"}
    found["python"] = platform.python_version()
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu goes by another name
            continue
    return found
