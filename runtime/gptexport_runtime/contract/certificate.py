"""Does a parity verdict belong to the files that are here? A manifest or a sidecar holds it, with their hashes."""

from __future__ import annotations

from pathlib import Path

from gptexport_runtime.contract.model import Description
from gptexport_runtime.errors import ArtifactError

CHECK = "Check it with `gptexport parity ARTIFACT --against CHECKPOINT`."


def why_not_certified(description: Description) -> str | None:
    """Why the artifact cannot be relied on as its checkpoint's model; None where a verdict says that it is that.

    The verdict names the sha256 of each file that it was measured on. That the files have these hashes is for the
    caller to check.
    """
    if description.parity is None:
        return f"its parity was never checked. {CHECK}"
    if (stale := description.why_stale()) is not None:
        return f"{stale} {CHECK}"
    if description.parity.get("passed") is not True:
        reasons = description.parity.get("reasons")
        first = reasons[0] if isinstance(reasons, list) and reasons else "the verdict gives no reason"
        return f"its parity check failed: {first}."
    return None


def require_certificate(path: Path, description: Description | None) -> None:
    """Refuse what no verdict vouches for. `path` names the artifact in errors.

    Raises:
        ArtifactError: it says why there is none.
    """
    if description is None:
        raise ArtifactError(f"{path} has no manifest, so no parity verdict. Load the bundle that it comes from.")
    reason = why_not_certified(description)
    if reason is not None:
        raise ArtifactError(f"{path}: require_parity was asked for, but {reason}")
