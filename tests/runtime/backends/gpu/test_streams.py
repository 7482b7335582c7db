"""What is captured is repeated by a launch, at the addresses that it was captured with."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gptexport_runtime import ExecutionError
from gptexport_runtime.backends.gpu.streams import Stream
from tests.support.fake_driver import FakeMemory


def test_captured_work_is_done_when_it_is_launched() -> None:
    memory = FakeMemory()
    stream, source, to = Stream(memory.driver), memory.allocate(8), memory.allocate(8, zeroed=True)
    graph = stream.capture(lambda: memory.driver.copy(to.address, source.address, 8, stream.handle))
    out = np.empty(1, np.int64)
    for value in (7, 8):
        memory.copies.upload(source.address, np.array([value]))
        memory.copies.download(to.address, out)
        assert out[0] == (0 if value == 7 else 7)
        stream.launch(graph)
        stream.wait()
        memory.copies.download(to.address, out)
        assert_array_equal(out, [value])
    del graph
    assert memory.library.graphs == {}


def test_a_capture_that_fails_leaves_the_stream_as_it_was() -> None:
    memory = FakeMemory()
    stream = Stream(memory.driver)

    def fail() -> None:
        raise ExecutionError("no")

    with pytest.raises(ExecutionError, match="no"):
        stream.capture(fail)
    memory.library.capturable = False
    with pytest.raises(ExecutionError, match="cuStreamEndCapture failed: CUDA error 901"):
        stream.capture(lambda: None)
    assert memory.library.captures == {} and memory.library._ended == {}
    stream.wait()
