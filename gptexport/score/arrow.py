"""pyarrow, which is optional: it reads and writes Parquet, and reads gzip and zstd."""

from __future__ import annotations

from typing import Any

from gptexport_runtime.errors import BackendUnavailableError


def import_pyarrow() -> Any:
    """The package, its Parquet module loaded.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendUnavailableError(
            "score writes Parquet, for which it needs pyarrow. Install it with `pip install 'gptexport[score]'`."
        ) from None
    return pyarrow
