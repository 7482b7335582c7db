"""What is read of a Chrome trace that torch's profiler wrote on a GPU."""

from __future__ import annotations

from scripts.gpu.profiles import bytes_to_host, graph_launches, read_trace

# As Kineto writes them: a kernel, copies both ways, a call of CUDA's runtime; a flow arrow has no duration.
TRACE = {
    "traceEvents": [
        {"ph": "X", "cat": "kernel", "name": "flash_fwd_kernel", "ts": 1, "dur": 20.5, "args": {"device": 0}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "dur": 1, "args": {"bytes": 400}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)", "dur": 1, "args": {"bytes": 4}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "dur": 1, "args": {"bytes": 32}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "dur": 3, "args": {}},
        {"ph": "X", "cat": "cuda_driver", "name": "cuGraphLaunch", "dur": 3},
        {"ph": "f", "cat": "ac2g", "name": "ac2g", "id": 3, "bp": "e"},
    ]
}


def test_events_are_read_with_their_kinds_and_bytes() -> None:
    events = read_trace(TRACE)
    assert [event.kind for event in events] == [
        *("kernel", "gpu_memcpy", "gpu_memcpy", "gpu_memcpy", "cuda_runtime", "cuda_driver")
    ]
    assert (events[0].name, events[0].microseconds, events[0].bytes) == ("flash_fwd_kernel", 20.5, 0)


def test_bytes_to_the_host_are_those_of_copies_from_the_device() -> None:
    assert bytes_to_host(read_trace(TRACE)) == 404


def test_replays_are_counted_under_either_name() -> None:
    assert graph_launches(read_trace(TRACE)) == 2
