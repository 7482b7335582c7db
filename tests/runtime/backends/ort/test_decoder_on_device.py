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
from gptexport_runtime.artifact import open_artifact
from tests.support.on_device import OnDevice


def load_on_device(bundle: Path, cuda: CudaOptions | None = None) -> tuple[Session, OnDevice]:
    """As `load` does on a GPU."""
    artifact = open_artifact(bundle)
    assert artifact.manifest is not None
    backend = OnDevice(artifact, cuda)
    return Session(backend, artifact.manifest.info, artifact), backend


@pytest.fixture(params=["portable", "cpu"])
def pair(bundles: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[tuple[Session, Session]]:
    """A session on the device, and one as users have it on the CPU."""
    bundle = bundles[request.param]
    with load_on_device(bundle)[0] as there, gptexport_runtime.load(bundle, "cpu", threads=1) as here:
        yield there, here


def test_every_graph_says_the_same(pair: tuple[Session, Session]) -> None:
    there, here = pair
    for rows in ([[1, 2, 3, 4], [5], [6, 7]], [[1]], [[8, 9, 10]]):
        for _ in range(3):  # the third time from what would be a graph
            assert_array_equal(there.logits(rows), here.logits(rows))
            assert_allclose(there.last_logits(rows), here.last_logits(rows), atol=1e-6)
            assert_array_equal(there.score(rows).logprobs, here.score(rows).logprobs)


@pytest.mark.parametrize("graphs", [None, False])
def test_the_same_tokens(graphs: bool | None, bundles: dict[str, Path]) -> None:
    """Rows of many lengths, which end at different steps and leave the cache, several times over the same memory."""
    there, backend = load_on_device(bundles["cpu"], CudaOptions(graphs=graphs))
    with there, gptexport_runtime.load(bundles["cpu"], "cpu", threads=1) as here:
        for seed in range(4):
            rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
            options: dict[str, Any] = {"seed": seed, "stop": [3, 20, 40, 60, 80], "temperature": 0.8}
            got, expected = (session.generate(rows, **options) for session in (there, here))
            for mine, theirs in zip(got, expected, strict=True):
                assert_array_equal(mine, theirs)
        assert (backend.captured_graphs > 0) == (graphs is None)


def test_forks_and_rewinds_stay_there(pair: tuple[Session, Session]) -> None:
    found = []
    for session in pair:
        with session.cache() as cache:
            session.generate([[1, 2, 3, 4, 5]], max_new_tokens=1, cache=cache)
            with cache.fork(3) as fork:
                fork.rewind([4, 5, 3])
                found.append(session.generate([[1, 2, 3, 4, 6], [1, 2, 3, 4, 5], [1, 2, 3, 9]], seed=7, cache=fork))
    for mine, theirs in zip(*found, strict=True):
        assert_array_equal(mine, theirs)


def test_a_step_moves_a_tokens_worth(bundles: dict[str, Path]) -> None:
    """Ids and lengths in, logits out; of the cache nothing."""
    session, backend = load_on_device(bundles["cpu"], CudaOptions(graphs=False))
    copied = backend.memory.library.copied
    with session, session.cache(rows=2) as cache:
        with cache.in_use():
            cache.feed([np.array([1, 2, 3]), np.array([4])])
            before = dict(copied)
            cache.feed([np.array([5]), np.array([6])])
        moved = {way: copied[way] - before[way] for way in before}
        assert moved == {"in": 3 * 2 * 8, "out": 2 * session.config.vocab_size * 4, "within": 0}
        before = dict(copied)
        with cache.fork(2):
            moved = {way: copied[way] - before[way] for way in before}
        assert (moved["in"], moved["out"]) == (0, 0) and moved["within"] > 0


def test_caches_in_turn_have_the_same_memory_and_graphs(bundles: dict[str, Path]) -> None:
    """Else every call of `generate` would capture anew, until the session may make no more."""
    session, backend = load_on_device(bundles["cpu"])
    with session:
        made = []
        for length in (3, 4, 5, 3):
            session.generate([list(range(length))], max_new_tokens=6, temperature=0)
            made.append(backend.captured_graphs)
        assert made == [1, 1, 1, 1]
