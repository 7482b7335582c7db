"""GPTs as people write them: each exports, has one attention node a block, is fused, and generates from a cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime.errors import GPTExportError
from tests.support.own.catalogue import CATALOGUE
from tests.support.own_modules import BS, V

NOT_PLAIN = {"chunk", "ALiBi", "distance", "softcap", "latent", "MPT", "Gemma 2"}  # GroupQueryAttention takes none
UNCACHED = {
    "positions: a key for each distance, Shaw's": "Add joins its scores with what depends on the tokens",
    "attention by hand: a sink": "its weights go through Slice before they meet values",
    "attention by hand: talking heads": "its weights go through Conv before they meet values",
    "attention by hand: differential": "its weights go through Sub before they meet values",
    "what is not attention alone: a convolution in front": "Conv (conv1d) looks across positions",
    "what is not attention alone: linear attention": "CumSum (cumsum) looks across positions",
    "what is not attention alone: a running mean": "CumSum (cumsum) looks across positions",
    "what is not attention alone: a prefix token": "looks across positions",
    "what is not attention alone: padding hidden": "a mask that depends on the tokens",
    "what is not attention alone: documents apart": "a mask that depends on the tokens",
}
QUICK = {  # one of each way to find attention and positions; the others take minutes
    "positions: rotary complex, a buffer",
    "scaled_dot_product_attention: is_causal=T > 1",
    "attention by hand: baddbmm, (B*H,T,D)",
    "head: padded vocabulary, cut",
    "refused: nn.LSTM",
}
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CATALOGUE]


@pytest.mark.parametrize("name", NAMES)
def test_what_people_write(name: str, tmp_path: Path) -> None:
    variant = CATALOGUE[name]
    (tmp_path / "model.py").write_text(
        f"from tests.support.own.catalogue import CATALOGUE\nmake = CATALOGUE[{name!r}].make\n"
    )
    source = f"{tmp_path / 'model.py'}:make"
    if variant.refused is not None:
        with pytest.raises(GPTExportError, match=variant.refused):
            export_onnx(load_checkpoint(source), tmp_path / "gpt", target="cpu")
        return
    checkpoint = load_checkpoint(source)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu")
    if name in UNCACHED:
        assert UNCACHED[name] in done.manifest.left_out["decode"]
    else:
        assert "decode" in done.manifest.graphs, done.manifest.left_out
        graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
        ops = Counter(node.op_type for node in graph.node)
        assert ops["Attention"] + ops["GroupQueryAttention"] == variant.nodes
        masked = not name.startswith("head:") and any(word in name for word in NOT_PLAIN)
        assert bool(ops["Attention"]) == masked
    writes_as_eager(tmp_path / "gpt", checkpoint.model)


def writes_as_eager(bundle: Path, model: torch.nn.Module) -> None:
    """Logits, and the greedy text of two rows at once up to block_size."""
    prompt = [[5, 60, 0], [7]]
    with gptexport_runtime.load(bundle, "cpu") as session, torch.no_grad():
        ids = np.random.default_rng(0).integers(0, V, (2, BS))
        np.testing.assert_allclose(session.logits(ids), model(torch.from_numpy(ids)).numpy(), rtol=0, atol=5e-5)
        texts = session.generate(prompt, temperature=0, stop=())
        for row, new in zip(prompt, texts, strict=True):
            whole = torch.tensor([[*row, *new.tolist()]])
            assert whole.shape[1] == BS
            assert model(whole).argmax(-1)[0, len(row) - 1 : -1].tolist() == new.tolist()
