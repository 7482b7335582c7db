"""A tiny bundle and the logits PyTorch computed for it in float64: scripts/fixtures/runtime_bundle.py wrote both."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "runtime" / "data"
TINY = DATA / "tiny"
V, BLOCK_SIZE = 61, 16
