"""What a session returns is what PyTorch computed in float64, whatever the shape and whoever calls."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gptexport_runtime
from gptexport_runtime import ContextLengthError, ExecutionError, InputError, Session, SessionError
from gptexport_runtime.contract.heads import Head, Signature
from gptexport_runtime.contract.names import AXIS_B, AXIS_T, INPUT_IDS
from tests.support.tiny import TINY

V, BLOCK = 61, 16
ATOL = 2e-5  # logits have a spread of 1.4; float32 errs by 3e-6


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 16), (3, 1), (3, 7), (2, 16), (3, 16)])
def test_logits_at_every_shape(session: Session, expected: Any, B: int, T: int) -> None:
    logits = session.logits(expected.ids[:B, :T])
    assert logits.shape == (B, T, V) and logits.dtype == np.float32
    assert_allclose(logits, expected.logits[:B, :T], atol=ATOL, rtol=0)


def test_session_tells_what_it_is(session: Session) -> None:
    assert (session.device, session.backend, session.threads) == ("cpu", "onnxruntime", len(os.sched_getaffinity(0)))
    assert (session.config.vocab_size, session.config.block_size, session.config.n_embd) == (V, BLOCK, 32)
    assert session.manifest is not None and session.manifest.opset == 23
    assert repr(session) == "<Session onnxruntime on cpu, vocab_size=61, block_size=16>"


def test_ragged_rows_are_exact_and_nan_past_their_end(session: Session, expected: Any) -> None:
    lengths = [5, 16, 1]
    rows = [row[:length].tolist() for row, length in zip(expected.ids, lengths, strict=True)]
    logits = session.logits(rows)
    assert logits.shape == (3, 16, V)
    for b, length in enumerate(lengths):
        assert_allclose(logits[b, :length], expected.logits[b, :length], atol=ATOL, rtol=0)
        assert_allclose(logits[b, :length], session.logits([rows[b]])[0], atol=ATOL, rtol=0)
        assert np.isnan(logits[b, length:]).all()


def test_last_logits_are_those_of_the_last_real_token(session: Session, expected: Any) -> None:
    lengths = [5, 16, 1]
    last = session.last_logits([row[:length] for row, length in zip(expected.ids, lengths, strict=True)])
    assert last.shape == (3, V) and last.dtype == np.float32
    assert_allclose(last, expected.logits[np.arange(3), np.array(lengths) - 1], atol=ATOL, rtol=0)
    assert_allclose(session.last_logits(expected.ids), expected.logits[:, -1], atol=ATOL, rtol=0)


def test_out_is_filled_and_returned(session: Session, expected: Any) -> None:
    out = np.full((2, 7, V), 123, np.float32)
    assert session.logits(expected.ids[:2, :7], out=out) is out
    assert_allclose(out, expected.logits[:2, :7], atol=ATOL, rtol=0)
    session.logits([[1], [2] * 7], out=out)
    assert np.isnan(out[0, 1:]).all() and np.isfinite(out[1]).all()


def test_the_backend_writes_into_out_itself(session: Session) -> None:
    """No copy in between: the graph gets the caller's own array."""
    got = []

    class Recorder:
        name, device, threads = "recorder", "cpu", 1

        def borrow(self, ids: Any) -> None: ...
        def open(self, head: Head) -> Recorder:
            return self

        def output_shape(self, B: int, T: int) -> tuple[int, ...]:
            return (B, T, V)

        def run(self, ids: Any, lengths: Any, out: Any) -> None:
            got.append(out)

    out = np.zeros((1, 2, V), np.float32)
    backend: Any = Recorder()
    Session(backend, session.config).logits([[1, 2]], out=out)
    assert got[0] is out


read_only = np.zeros((2, 3, V), np.float32)
read_only.flags.writeable = False
unaligned = np.frombuffer(bytearray(2 * 3 * V * 4 + 1), np.uint8)[1:].view(np.float32).reshape(2, 3, V)
OUTS = {
    "list": ([0.0], "out is a list; expected a writable, C-contiguous float32 array of shape (2, 3, 61)"),
    "dtype": (np.zeros((2, 3, V)), "out is float64 (2, 3, 61); expected"),
    "byte order": (np.zeros((2, 3, V), ">f4"), "out is >f4 (2, 3, 61); expected"),
    "shape": (np.zeros((2, 4, V), np.float32), "out is float32 (2, 4, 61); expected"),
    "strides": (np.zeros((2, 6, V), np.float32)[:, ::2], "out is not contiguous; expected"),
    "order": (np.zeros((2, 3, V), np.float32, order="F"), "out is not contiguous; expected"),
    "read-only": (read_only, "out is read-only; expected"),
    "unaligned": (unaligned, "out is unaligned; expected"),
}


@pytest.mark.parametrize(("out", "message"), OUTS.values(), ids=OUTS)
def test_wrong_out_is_refused(session: Session, out: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        session.logits(np.zeros((2, 3), int), out=out)
    assert message in str(caught.value)


def test_wrong_ids_reach_no_backend(session: Session) -> None:
    for call in (session.logits, session.last_logits):
        with pytest.raises(ContextLengthError, match="block_size is 16"):
            call(np.zeros((1, 17), int))
        with pytest.raises(InputError, match=r"ids\[0\]\[0\] is 61"):
            call([[61]])


def test_results_are_never_written_again(session: Session, expected: Any) -> None:
    first = session.logits(expected.ids)
    kept = first.copy()
    second = session.logits(expected.ids[::-1].copy())
    assert not np.shares_memory(first, second) and first.flags.owndata and first.flags.writeable
    assert_array_equal(first, kept)
    assert session.last_logits(expected.ids).flags.writeable


def test_threads_share_a_session(session: Session, expected: Any) -> None:
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(40):
            B, T = int(rng.integers(1, 4)), int(rng.integers(1, BLOCK + 1))
            assert_allclose(session.logits(expected.ids[:B, :T]), expected.logits[:B, :T], atol=ATOL, rtol=0)
            assert_allclose(session.last_logits(expected.ids[:B, :T]), expected.logits[:B, T - 1], atol=ATOL, rtol=0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_closed_session_says_so() -> None:
    with gptexport_runtime.load(TINY, "cpu") as session:
        session.logits([[1]])
    assert "closed" in repr(session)
    session.close()  # twice is fine
    for call in (lambda: session.logits([[1]]), lambda: session.last_logits([[1]]), session.__enter__):
        with pytest.raises(SessionError, match=r"closed\. Open another with load"):
            call()


def test_forked_child_gets_an_error_instead_of_a_deadlock(session: Session) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the child must leave by _exit: nothing of pytest may run twice
        try:
            session.logits([[1]])
            os.write(write, b"ran")
        except SessionError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert f"opened by process {os.getpid()} and cannot run in process {child}" in message and "load()" in message
    assert session.logits([[1]]).shape == (1, 1, V)  # the parent goes on


def test_failure_in_the_backend_is_ours_and_prints_nothing(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A graph that hides its block_size: T past it fails somewhere inside, and the error says what to suspect."""
    graph = bundle / "logits.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"gptexport.block_size", b"gptexport.xxxxx_size"))
    with gptexport_runtime.load(graph, "cpu") as session:
        assert session.config.block_size is None
        with pytest.raises(ExecutionError, match=r"failed on cpu at B=1, T=17: .*does not tell its block_size"):
            session.logits(np.zeros((1, 17), int))
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_cuda_computes_the_same(cuda: None, expected: Any) -> None:
    with gptexport_runtime.load(TINY, "cuda") as session:
        assert session.device == "cuda"
        assert_allclose(session.logits(expected.ids), expected.logits, atol=ATOL, rtol=0)
        out = np.empty((3, 16, V), np.float32)
        assert_allclose(session.logits(expected.ids, out=out), expected.logits, atol=ATOL, rtol=0)
    with gptexport_runtime.load(TINY) as session:
        assert session.device == "cuda"  # auto


def test_score_without_a_graph_for_it(session: Session, expected: Any) -> None:
    """By way of all logits, row by row."""
    scores = session.score(expected.ids)
    wide = expected.logits[:, :-1]
    logsum = np.log(np.exp(wide).sum(-1))
    picked = np.take_along_axis(wide, expected.ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(scores.logprobs, picked - logsum, atol=1e-5)
    ragged = session.score([expected.ids[0, :5].tolist(), expected.ids[1, :1].tolist()])
    np.testing.assert_allclose(ragged.logprobs[0], (picked - logsum)[0, :4], atol=1e-5)
    assert np.isnan(ragged.logprobs[1]).all()
    assert ragged.counts.tolist() == [4, 0]


def test_any_head_is_run_by_its_definition_where_there_is_no_graph(session: Session, expected: Any) -> None:
    """By a head of the test's own, or by name."""
    best = Head(
        name="best",
        signature=Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, "best", (AXIS_B, AXIS_T)),
        from_logits=lambda logits, _ids, _lengths: logits.max(axis=-1),
    )
    got = session.run(best, [expected.ids[0, :5], expected.ids[1, :9]])
    assert_allclose(got[1], expected.logits[1, :9].max(axis=-1), atol=ATOL, rtol=0)
    assert np.isnan(got[0, 5:]).all() and np.isfinite(got[0, :5]).all()
    assert_array_equal(session.run("last", expected.ids), session.last_logits(expected.ids))
    wrongs: tuple[Any, ...] = ("loss", 3)
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"head is .*; expected one of logits, last, score, decode, or a Head"):
            session.run(wrong, expected.ids)


def test_a_definition_is_computed_a_few_rows_at_a_time(session: Session, expected: Any) -> None:
    """All logits of a large batch are never there together."""
    seen: list[int] = []

    def count(logits: Any, ids: Any, lengths: Any) -> Any:
        seen.append(logits.shape[0])
        return logits[:, 0, 0]

    signature = Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, "first", (AXIS_B,))
    ids = np.tile(expected.ids, (50, 1))  # 150 rows of 16 tokens
    got = session.run(Head(name="first", signature=signature, from_logits=count), ids)
    assert seen == [64, 64, 22]
    assert_allclose(got, np.tile(expected.logits[:, 0, 0], 50), atol=ATOL, rtol=0)
