"""The Python bindings of an edition of TensorRT."""

from __future__ import annotations

import importlib
import types

from gptexport_runtime.contract.edition import Edition
from gptexport_runtime.errors import BackendUnavailableError


def import_library(edition: Edition, package: str) -> types.ModuleType:
    """The bindings.

    Args:
        package: whose extra installs them: "gptexport-runtime".

    Raises:
        BackendUnavailableError: they are not installed, or their libraries do not load.
    """
    install = f"`{edition.install(package)}`"
    try:
        return importlib.import_module(edition.module)
    except ModuleNotFoundError as error:
        if error.name != edition.module:
            raise BackendUnavailableError(f"{edition.module} does not import: {error}. Install it again.") from error
        raise BackendUnavailableError(f"{edition.module} is not installed: {install}.") from error
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{edition.module} does not import: {error}. Install it again: {install}."
        ) from error
