"""TensorRT's messages, kept and never printed: what matters of them is in our exceptions."""

from __future__ import annotations

import types
from typing import Any

_loggers: dict[str, Any] = {}  # by module; TensorRT keeps the first logger of a process for good and ignores others


def open_log(library: types.ModuleType) -> Any:
    """The process's one logger for `library`, emptied. Its `lines` are (severity, text) of all that was not verbose."""
    if library.__name__ not in _loggers:

        class Logger(library.ILogger):  # type: ignore[misc, name-defined] # a base that is known at run time only
            def __init__(self) -> None:
                super().__init__()
                self.lines: list[tuple[str, str]] = []

            def log(self, severity: Any, message: str) -> None:
                if severity.name != "VERBOSE":
                    self.lines = [*self.lines[-999:], (severity.name, " ".join(message.split()))]

        _loggers[library.__name__] = Logger()
    logger = _loggers[library.__name__]
    logger.lines = []
    return logger


def errors_of(lines: list[tuple[str, str]]) -> str:
    """The errors among them, each once."""
    errors = [text for severity, text in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    return " ".join(dict.fromkeys(errors)) or "it gave no reason."
