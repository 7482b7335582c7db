"""The examples in other languages read a bundle as a session does: the same logits, the same texts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptexport.cli.app import run
from gptexport_runtime import load
from scripts.check_examples import Example, MissingError, c, javascript
from tests.support.builders import tiny_nanogpt

EXPORTS = {"portable": [], "cpu": ["--target", "cpu"], "float16": ["--dtype", "float16"]}
ROWS = [[5, 44, 3, 90, 21, 7], [12, 0, 96, 61, 8, 33]]  # (B,T)
LANGUAGES: dict[str, Callable[[Path], Example]] = {
    "javascript": lambda _folder: javascript(),
    "c": lambda folder: c(os.environ.get("ORT_INCLUDE"), folder),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    ckpt = tiny_nanogpt(folder / "ckpt.pt")
    for name, options in EXPORTS.items():
        assert run(["onnx", str(ckpt), "-o", str(folder / name), "-q", *options]) == 0
    return {name: folder / name for name in EXPORTS}


@pytest.fixture(params=LANGUAGES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Example:
    try:
        return LANGUAGES[request.param](tmp_path)
    except MissingError as error:
        pytest.skip(f"{request.param}: {error}")


def test_it_computes_and_generates_what_a_session_does(example: Example, bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        with load(bundle, "cpu") as session:
            np.testing.assert_allclose(example.logits(bundle, ROWS), session.logits(ROWS), rtol=0, atol=1e-5)
            expected = session.generate(ROWS, max_new_tokens=8, temperature=0)
        assert example.generate(bundle, ROWS, 8) == [list(row) for row in expected]


def test_it_refuses_what_a_graph_would_take(example: Example, bundles: dict[str, Path], tmp_path: Path) -> None:
    def refused(bundle: Path, rows: list[list[int]]) -> str:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            example.logits(bundle, rows)
        return str(caught.value.stderr)

    bundle = bundles["portable"]
    for wrong in (-1, 97):
        assert str(wrong) in refused(bundle, [[5, wrong]])
    assert "length" in refused(bundle, [[5, 6], [7]])
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    weights = bytearray((other / "weights.data").read_bytes())
    weights[-2] ^= 1  # of the SHA-256 in its last line
    (other / "weights.data").write_bytes(weights)
    assert "weights.data" in refused(other, ROWS)
