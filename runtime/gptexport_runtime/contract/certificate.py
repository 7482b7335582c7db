"""Does a parity verdict belong to the files that are here: a bundle's in its manifest, an engine's in its sidecar?"""

from __future__ import annotations

from pathlib import Path

from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.engine_file import EngineInfo
from gptexport_runtime.errors import ArtifactError

CHECK = "Check it with `gptexport parity ARTIFACT --against CHECKPOINT`."


def why_not_proved(described: Manifest | EngineInfo) -> str | None:
    """Why nobody may rely on the artifact being its checkpoint's model; None where a verdict says that it is.

    The verdict names the sha256 of each file that it was measured on. That the files have these hashes is for the
    caller to check.
    """
    stale = why_stale(described)
    if described.parity is None:
        return f"its parity was never checked. {CHECK}"
    if stale is not None:
        return f"{stale} {CHECK}"
    if described.parity.get("passed") is not True:
        reasons = described.parity.get("reasons") or ["the verdict gives no reason"]
        return f"its parity check failed: {reasons[0]}."
    return None


def why_stale(described: Manifest | EngineInfo) -> str | None:
    """What the verdict was measured on, where that is not what the manifest or the sidecar lists now."""
    if described.parity is None:
        return None
    if isinstance(described, EngineInfo):
        if described.parity.get("engine_sha256") != described.engine.sha256:
            return "its parity verdict does not belong to it: it was measured on another engine."
        return None
    graphs = {kind: entry.sha256 for kind, entry in described.graphs.items()}
    if described.parity.get("graphs_sha256") != graphs:
        return "its parity verdict does not belong to it: it was measured on other graphs."
    if described.parity.get("weights_sha256") != (described.weights.sha256 if described.weights else None):
        return "its parity verdict does not belong to it: it was measured on other weights."
    return None


def require_proof(logits: Path, described: Manifest | EngineInfo | None) -> None:
    """Refuse what no verdict vouches for. `logits`: the graph, or the engine.

    Raises:
        ArtifactError: it says why there is none.
    """
    if described is None:
        raise ArtifactError(f"{logits} has no manifest, so no parity verdict. Load the bundle that it comes from.")
    reason = why_not_proved(described)
    if reason is not None:
        place = logits if isinstance(described, EngineInfo) else logits.parent
        raise ArtifactError(f"{place}: require_parity was asked for, but {reason}")
