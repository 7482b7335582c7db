"""Generation with the cache on a device: the same tokens, the cache never on the host, steps from captured graphs.

The device is the host's memory (fake_driver.py), the arithmetic ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gptexport_runtime
from gptexport_runtime import CudaOptions, Session
from gptexport_runtime.backends.gpu.memory import HostPlace, Place
from gptexport_runtime.backends.ort import bound_graph as ort_cuda
from gptexport_runtime.backends.ort.bound_graph import open_bound_graph
from gptexport_runtime.backends.ort.decode import OrtDecoder, open_bound_decoder
from gptexport_runtime.backends.ort.graph import open_session
from gptexport_runtime.bundle import open_artifact
from gptexport_runtime.contract import heads
from tests.support.fake_driver import FakePlace


def load_on(place: Place, bundle: Path, cuda: CudaOptions) -> Session:
    """As `load` does on a GPU."""
    artifact = open_artifact(bundle)
    manifest = artifact.manifest
    assert manifest is not None

    def open_one(kind: str) -> Any:
        file = bundle / manifest.graphs[kind].file
        if kind == heads.DECODE.name:
            return open_bound_decoder(file, place, threads=1, cuda=cuda)
        return open_bound_graph(file, place, kind, threads=1, cuda=cuda)

    graph = open_one("logits")
    return Session(graph, manifest.info, manifest, open_one)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_it(path: Path, device: str, threads: int, *, plan: bool, cuda: CudaOptions, graphs: bool) -> Any:
        return open_session(path, device, threads, plan=plan)

    monkeypatch.setattr(ort_cuda, "open_session", open_it)


@pytest.fixture(params=["host", "device"])
def place(request: pytest.FixtureRequest, on_host: None) -> Place:
    return HostPlace() if request.param == "host" else FakePlace()


@pytest.fixture(params=["portable", "cpu"])
def pair(bundles: dict[str, Path], place: Place, request: pytest.FixtureRequest) -> Iterator[tuple[Session, Session]]:
    """A session on the place, and one as users have it on the CPU."""
    bundle = bundles[request.param]
    with load_on(place, bundle, CudaOptions()) as bound, gptexport_runtime.load(bundle, "cpu", threads=1) as plain:
        yield bound, plain


def test_every_graph_says_the_same(pair: tuple[Session, Session]) -> None:
    bound, plain = pair
    for rows in ([[1, 2, 3, 4], [5], [6, 7]], [[1]], [[8, 9, 10]]):
        for _ in range(3):  # the third time from what would be a graph
            assert_array_equal(bound.logits(rows), plain.logits(rows))
            assert_allclose(bound.last_logits(rows), plain.last_logits(rows), atol=1e-6)
            assert_array_equal(bound.score(rows).logprobs, plain.score(rows).logprobs)


@pytest.mark.parametrize("graphs", [None, False])
def test_the_same_tokens(graphs: bool | None, bundles: dict[str, Path], place: Place) -> None:
    """Rows of many lengths, which end at different steps and leave the cache, several times over the same memory."""
    with (
        load_on(place, bundles["cpu"], CudaOptions(graphs=graphs)) as bound,
        gptexport_runtime.load(bundles["cpu"], "cpu", threads=1) as plain,
    ):
        for seed in range(4):
            rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
            options: dict[str, Any] = {"seed": seed, "stop": [3, 20, 40, 60, 80], "temperature": 0.8}
            got, expected = (session.generate(rows, **options) for session in (bound, plain))
            for mine, theirs in zip(got, expected, strict=True):
                assert_array_equal(mine, theirs)
        decoder: OrtDecoder = bound._graph(heads.DECODE.name)
        assert decoder.bound is not None
        assert (decoder.bound._made > 0) == (graphs is None)


def test_forks_and_rewinds_stay_there(pair: tuple[Session, Session]) -> None:
    bound, _ = pair
    for session in pair:
        with session.cache() as cache:
            session.generate([[1, 2, 3, 4, 5]], max_new_tokens=1, cache=cache)
            with cache.fork(3) as fork:
                fork.rewind([4, 5, 3])
                forked = session.generate([[1, 2, 3, 4, 6], [1, 2, 3, 4, 5], [1, 2, 3, 9]], seed=7, cache=fork)
        if session is bound:
            first = forked
    for mine, theirs in zip(first, forked, strict=True):
        assert_array_equal(mine, theirs)


def test_a_step_moves_a_tokens_worth(on_host: None, bundles: dict[str, Path]) -> None:
    """Ids and lengths in, logits out; of the cache nothing."""
    place = FakePlace()
    with load_on(place, bundles["cpu"], CudaOptions(graphs=False)) as session, session.cache(rows=2) as cache:
        with cache.in_use():
            cache.feed([np.array([1, 2, 3]), np.array([4])])
            before = dict(place.library.copied)
            cache.feed([np.array([5]), np.array([6])])
        moved = {way: place.library.copied[way] - before[way] for way in before}
        assert moved == {"in": 3 * 2 * 8, "out": 2 * session.config.vocab_size * 4, "within": 0}
        before = dict(place.library.copied)
        with cache.fork(2):
            moved = {way: place.library.copied[way] - before[way] for way in before}
        assert (moved["in"], moved["out"]) == (0, 0) and moved["within"] > 0


def test_caches_in_turn_have_the_same_memory_and_graphs(on_host: None, bundles: dict[str, Path]) -> None:
    """Else every call of `generate` would capture anew, until the session may make no more."""
    with load_on(FakePlace(), bundles["cpu"], CudaOptions()) as session:
        made = []
        for length in (3, 4, 5, 3):
            session.generate([list(range(length))], max_new_tokens=6, temperature=0)
            made.append(session._graph(heads.DECODE.name).bound._made)
        assert made == [1, 1, 1, 1]
