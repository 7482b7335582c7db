"""Does a bundle's parity verdict belong to the files that are here?"""

from __future__ import annotations

from pathlib import Path

from gptexport_runtime.contract import Manifest
from gptexport_runtime.errors import ArtifactError

CHECK = "Check it with `gptexport parity BUNDLE --against CHECKPOINT`."


def why_not_proved(manifest: Manifest) -> str | None:
    """Why nobody may rely on the bundle being its checkpoint's model; None where a verdict says that it is.

    The verdict names the sha256 of each graph and of the weights that it was measured on. That the files have these
    hashes is for the caller to check.
    """
    stale = why_stale(manifest)
    if manifest.parity is None:
        return f"its parity was never checked. {CHECK}"
    if stale is not None:
        return f"{stale} {CHECK}"
    if manifest.parity.get("passed") is not True:
        reasons = manifest.parity.get("reasons") or ["the verdict gives no reason"]
        return f"its parity check failed: {reasons[0]}."
    return None


def why_stale(manifest: Manifest) -> str | None:
    """What the verdict was measured on, where that is not what the manifest lists now."""
    if manifest.parity is None:
        return None
    graphs = {kind: entry.sha256 for kind, entry in manifest.graphs.items()}
    if manifest.parity.get("graphs_sha256") != graphs:
        return "its parity verdict does not belong to it: it was measured on other graphs."
    if manifest.parity.get("weights_sha256") != (manifest.weights.sha256 if manifest.weights else None):
        return "its parity verdict does not belong to it: it was measured on other weights."
    return None


def require_proof(logits: Path, manifest: Manifest | None) -> None:
    """Refuse what no verdict vouches for.

    Raises:
        ArtifactError: it says why there is none.
    """
    if manifest is None:
        raise ArtifactError(f"{logits} has no manifest, so no parity verdict. Load the bundle that it comes from.")
    reason = why_not_proved(manifest)
    if reason is not None:
        raise ArtifactError(f"{logits.parent}: require_parity was asked for, but {reason}")
