"""Tiny bundles in each dtype, made once, and engines of them. TensorRT for RTX builds them for real, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.engine import BuiltEngine, build_engine, make_profiles, open_library, open_source
from gptexport.export import export_onnx
from tests.support.builders import tiny_nanogpt

Export = Callable[..., Path]
Build = Callable[..., BuiltEngine]


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers, 3 heads of 10, V = 97, block_size 17; tied."""
    return tiny_nanogpt(tmp_path_factory.mktemp("nanogpt") / "ckpt.pt")


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export("bfloat16", n_head=3)`: a bundle of a tiny nanoGPT. Each is exported once; never written to."""
    made: dict[Any, Path] = {}

    def call(dtype: str = "float32", **sizes: Any) -> Path:
        key = (dtype, *sorted(sizes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(dtype)
            checkpoint = load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt", **sizes)))
            made[key] = export_onnx(checkpoint, folder / "gpt", dtype=dtype).path
        return made[key]

    return call


@pytest.fixture(scope="session")
def build() -> Build:
    """`build(bundle, out)`: an engine for SM89, of one profile up to 8x17 or the block_size."""

    def call(bundle: Path, out: Path, *, targets: tuple[str, ...] = ("8.9",), high: Any = (), **options: Any) -> Any:
        library, source = open_library("tensorrt-rtx"), open_source(bundle)
        profiles = make_profiles([], [], high, block_size=source.block_size)
        return build_engine(library, source, out, profiles=profiles, targets=targets, **options)

    return call


@pytest.fixture(scope="session")
def engine(export: Export, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the tiny model in bfloat16, for SM89. Never written to: copy it and its sidecar first."""
    return build(export("bfloat16"), tmp_path_factory.mktemp("engine") / "gpt.engine").path
