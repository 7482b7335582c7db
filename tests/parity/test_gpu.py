"""On a GPU: a bundle of `--target cuda` is its checkpoint's model in every dtype, against eager on the same device.

Not run where there is none: `pytest -m gpu tests/parity`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.precision import dtypes
from gptexport_runtime import CudaOptions
from gptexport_runtime.backends.gpu.copies import Copies
from gptexport_runtime.backends.gpu.device import why_no_gpu
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu()))]
DTYPES = dtypes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64, which every attention kernel takes."""
    folder = tmp_path_factory.mktemp("gpu")
    return tiny_nanogpt(folder / "ckpt.pt", n_embd=128, n_head=2, block_size=128)


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for dtype in DTYPES:
        export_onnx(load_checkpoint(str(checkpoint)), folder / dtype, dtype=dtype, target="cuda")
    export_onnx(load_checkpoint(str(checkpoint)), folder / "portable")
    return {name: folder / name for name in (*DTYPES, "portable")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_parity(dtype: str, cli: Cli, bundles: dict[str, Path], checkpoint: Path) -> None:
    ran = cli("parity", bundles[dtype], "--against", checkpoint, "--device", "cuda")
    assert ran.code == 0, ran.out
    gptexport_runtime.load(bundles[dtype], "cuda", require_parity=True).close()


def test_small_shapes_are_captured(bundles: dict[str, Path]) -> None:
    """Every graph that can be is, and no bit changes."""
    with (
        gptexport_runtime.load(bundles["bfloat16"], "cuda", cuda=CudaOptions(graphs=None)) as captured,
        gptexport_runtime.load(bundles["bfloat16"], "cuda", cuda=CudaOptions(graphs=False)) as plain,
    ):
        for seed in range(8):
            for shape in ((1, 1), (1, 100), (2, 7)):
                ids = np.random.default_rng(seed).integers(0, captured.config.vocab_size, shape)
                np.testing.assert_array_equal(captured.logits(ids), plain.logits(ids))
                np.testing.assert_array_equal(captured.last_logits(ids), plain.last_logits(ids))
        assert (captured.captured_graphs, plain.captured_graphs) == (6, 0)  # of logits and of last


def test_score_brings_four_bytes_a_token(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[int] = []
    download = Copies.download

    def counted(copies: Copies, address: int, out: np.ndarray) -> None:
        brought.append(out.nbytes)
        download(copies, address, out)

    monkeypatch.setattr(Copies, "download", counted)
    with gptexport_runtime.load(bundles["float32"], "cuda") as session:
        ids = np.random.default_rng(0).integers(0, session.config.vocab_size, (4, 128))
        scores = session.score(ids)
        assert brought == [4 * 4 * 127]
        brought.clear()
        session.last_logits(ids)
        assert brought == [4 * 4 * session.config.vocab_size]
    with gptexport_runtime.load(bundles["portable"], "cpu") as cpu:
        np.testing.assert_allclose(scores.logprobs, cpu.score(ids).logprobs, atol=1e-4)


def test_generation_is_the_cpus(bundles: dict[str, Path]) -> None:
    """Greedy, in float32: prompts of many lengths, rows that end, a fork; the cache never leaves the GPU."""
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
    found = []
    devices: dict[str, Literal["cpu", "cuda"]] = {"float32": "cuda", "portable": "cpu"}
    for name, device in devices.items():
        with gptexport_runtime.load(bundles[name], device) as session:
            for _ in range(3):
                tokens = [row.tolist() for row in session.generate(rows, max_new_tokens=40, temperature=0)]
            with session.cache() as cache:
                session.generate([rows[2]], max_new_tokens=1, temperature=0, cache=cache)
                with cache.fork(3) as fork:
                    forked = session.generate([rows[2]] * 3, max_new_tokens=20, temperature=0, cache=fork)
            found.append((tokens, [row.tolist() for row in forked]))
    assert found[0] == found[1]
