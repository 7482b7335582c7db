"""The verdict in the manifest, bound by hash to what it was measured on."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptexport_runtime.contract import MANIFEST_FILE, Manifest

from gptexport.parity.verdict import Verdict
from gptexport.staging import replace_file


def record_verdict(bundle: Path, manifest: Manifest, verdict: Verdict, checkpoint_sha256: str) -> None:
    """Write the verdict into the bundle's manifest, whole or not at all. No date: a rerun writes the same bytes."""
    record: dict[str, Any] = verdict.to_dict()
    for long in ("by_position", "by_row"):
        if record["summary"] is not None:
            del record["summary"][long]
    record |= {
        "checkpoint_sha256": checkpoint_sha256,
        "graphs_sha256": {kind: entry.sha256 for kind, entry in manifest.graphs.items()},
        "weights_sha256": manifest.weights.sha256 if manifest.weights else None,
        "versions": {name: version(name) for name in ("gptexport", "gptexport-runtime", "torch")},
    }
    replace_file(bundle / MANIFEST_FILE, replace(manifest, parity=record).to_json().encode())
