"""On a GPU: engines built for it compute what ONNX Runtime computes, from several threads and from captured graphs.

Not run where there is none: `pytest -m gpu tests/engine`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptexport_runtime
from gptexport.engine import Library, build_engine, choose_targets, make_profiles, open_library, open_source
from gptexport_runtime import BackendUnavailableError, Session
from gptexport_runtime.backends.gpu.device import why_no_gpu
from tests.support.cli import Cli

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu())),
]
Export = Callable[..., Path]
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # relative RMS; parity is the exact verdict
SHAPES = [(1, 1), (3, 7), (8, 17), (2, 17), (1, 16)]


def library_here() -> Library:
    """What builds here; skips where no TensorRT does, though there is a GPU."""
    try:
        return open_library(None)
    except BackendUnavailableError as error:
        pytest.skip(str(error))


def targets_here(library: Library) -> list[str]:
    """Of the GPU here; skips where the library has no such target, and for no other reason."""
    assert library.gpu is not None, "there is a GPU, or these tests had not begun"
    here = library.gpu.compute_capability
    if library.edition.names_targets and here not in library.targets:
        pytest.skip(f"{library.edition.title} {library.version} has no target {here}")
    return choose_targets(library, [])


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def opened(
    request: pytest.FixtureRequest, export: Export, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Session, Session, float]]:
    """An engine's session, the float32 bundle's on the CPU, and how far apart they may be."""
    library, source = library_here(), open_source(export(request.param))
    out = tmp_path_factory.mktemp("gpu") / "gpt.engine"
    profiles = make_profiles([], [], [(2, 8), (8, 17)], block_size=17)
    targets = targets_here(library)
    build_engine(library, source, out, profiles=profiles, targets=targets)
    with gptexport_runtime.load(out) as engine, gptexport_runtime.load(export("float32"), "cpu") as reference:
        yield engine, reference, TOLERANCE[request.param]


def ids_of(shape: tuple[int, int], seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 97, shape)


def check(actual: Any, expected: Any, tolerance: float) -> None:
    difference = np.sqrt(np.mean(np.square(actual - expected))) / np.sqrt(np.mean(np.square(expected)))
    assert difference <= tolerance


def test_every_shape_again_and_again(opened: tuple[Session, Session, float]) -> None:
    """Each shape runs in the roaming context, in one of its own, and from a captured graph, all shapes in turn."""
    engine, reference, tolerance = opened
    for seed in range(5):
        for shape in SHAPES:
            ids = ids_of(shape, seed)
            check(engine.logits(ids), reference.logits(ids), tolerance)


def test_threads(opened: tuple[Session, Session, float]) -> None:
    engine, reference, tolerance = opened
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(20):
                ids = ids_of(SHAPES[(seed + step) % len(SHAPES)], seed * 100 + step)
                check(engine.logits(ids), reference.logits(ids), tolerance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_torch_tensors_without_a_copy(opened: tuple[Session, Session, float]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    engine, reference, tolerance = opened
    for seed in range(3):
        ids = ids_of((3, 7), seed)
        logits = torch.from_dlpack(engine.logits(torch.from_numpy(ids).cuda(), device_output=True))
        assert logits.is_cuda
        check(logits.cpu().numpy(), reference.logits(ids), tolerance)


def test_scores_and_last_logits(opened: tuple[Session, Session, float]) -> None:
    engine, reference, tolerance = opened
    rows = [[1, 2, 3, 4], [5], [6, 7]]
    check(engine.last_logits(rows), reference.last_logits(rows), tolerance)
    np.testing.assert_allclose(engine.score(rows).nll, reference.score(rows).nll, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_parity_three_ways(cli: Cli, dtype: str, export: Export, tmp_path: Path) -> None:
    """An engine is its checkpoint's model, by the gates of its dtype; the verdict is in its sidecar."""
    bundle, library, out = export(dtype), library_here(), tmp_path / "gpt.engine"
    targets = targets_here(library)
    profiles = make_profiles([], [], [(2, 8), (8, 17)], block_size=17)
    build_engine(library, open_source(bundle), out, profiles=profiles, targets=targets)
    ran = cli("parity", out, "--against", bundle.parent / "ckpt.pt", "--graph", bundle)
    assert ran.code == 0, ran.out
    gptexport_runtime.load(out, require_parity=True).close()
