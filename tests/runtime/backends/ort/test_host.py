"""On the host nothing is copied that need not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gptexport_runtime
from gptexport_runtime import InputError
from tests.support.tiny import TINY, V


def test_logits_are_left_in_the_hosts_memory() -> None:
    """One API for every device."""
    with gptexport_runtime.load(TINY / "logits.onnx", "cpu", threads=1) as session:
        logits = session.logits([[1, 2], [3]], device_output=True)
        assert_array_equal(np.from_dlpack(logits)[1, :1], session.logits([[3]])[0])
        both: dict[str, Any] = {"device_output": True, "out": np.empty((1, 1, V), np.float32)}
        with pytest.raises(InputError, match="out is given with device_output=True"):
            session.logits([[1]], **both)
