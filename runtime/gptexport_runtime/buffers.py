"""Arrays of the caller's that a backend writes into."""

from __future__ import annotations

import numpy as np

from gptexport_runtime.errors import InputError


def check_out(out: object, shape: tuple[int, int, int]) -> None:
    """See that `out` is float32 (B,T,V), C-contiguous and writable.

    Raises:
        InputError: it is not; the message says how.
    """
    expected = f"expected a writable, C-contiguous float32 array of shape {shape}"
    if not isinstance(out, np.ndarray):
        raise InputError(f"out is a {type(out).__name__}; {expected}.")
    if out.dtype != np.float32 or out.shape != shape:
        raise InputError(f"out is {out.dtype} {out.shape}; {expected}.")
    for flaw, found in (
        ("read-only", not out.flags.writeable),
        ("not contiguous", not out.flags.c_contiguous),
        ("unaligned", not out.flags.aligned),
    ):
        if found:
            raise InputError(f"out is {flaw}; {expected}.")
