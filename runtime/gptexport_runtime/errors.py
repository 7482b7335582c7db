"""What can go wrong, by whose doing. Every message says what was got, what was expected and what to do."""

from __future__ import annotations


def shown(value: object, limit: int = 80) -> str:
    """A value for a message: its repr, cut where it is long; of one that cannot be shown, its type."""
    try:
        text = repr(value)
    except Exception:  # an integer of more digits than Python prints; a __repr__ that fails
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class GPTExportError(Exception):
    """Base of every error that gptexport and its runtime raise on purpose."""


class InputError(GPTExportError, ValueError):
    """The caller's token ids (dtype, rank, range, shape) or options are not what the model takes."""


class ContextLengthError(InputError):
    """A row is longer than the model's block_size."""


class ArtifactError(GPTExportError):
    """A bundle, graph or engine is missing, damaged, or of a format this version does not read."""


class BackendUnavailableError(GPTExportError):
    """The asked-for device or library cannot run on this machine; nothing was silently replaced."""


class SessionError(GPTExportError, RuntimeError):
    """The session is closed, or was opened by the process that this one was forked from."""


class ExecutionError(GPTExportError, RuntimeError):
    """The backend failed while it ran valid ids: out of memory, or a graph that does not keep to its contract."""
