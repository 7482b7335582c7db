"""What a forked child must not free: it has none of its parent's threads."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_in_child(made: Any) -> None:
    """Never free it in a forked child. To free what has threads is to join them, and the child would wait for ever, at
    its exit at the latest."""
    _kept.add(made)


def _keep() -> None:
    for made in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_keep)
