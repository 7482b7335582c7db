"""GPT-2 as transformers.js takes it: an ONNX graph whose cache grows by concatenation, in a folder like the hub's.

By torch's own exporter, as the graphs on the hub are (there by optimum): nothing of gptexport's graphs is in it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gptexport.architectures.gpt2 import GPT

PAGE = Path(__file__).with_name("web_peer.html")
# by package, what its page loads
FILES = {
    "@huggingface/transformers/dist/transformers.web.js": "",
    "onnxruntime-web/dist/ort.webgpu.bundle.min.mjs": "ort",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm": "ort",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs": "ort",
}


class WithCache(nn.Module):
    """The same weights; keys and values of all tokens so far go in and come out."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """ids (B,T), mask (B,P+T), past 2·n_layer of (B,n_head,P,head_size) -> logits (B,T,V), and the cache."""
        model: Any = self.model.transformer
        (_, T), P = ids.shape, past[0].shape[2]
        positions = torch.arange(P, P + T)
        visible = (torch.arange(P + T)[None, :] <= positions[:, None])[None, None] & mask[:, None, None, :].bool()
        x = model.wte(ids) + model.wpe(positions)
        present = []
        for layer, block in enumerate(model.h):
            q, k, v = (self._heads(part, block) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=2))
            k, v = torch.cat([past[2 * layer], k], 2), torch.cat([past[2 * layer + 1], v], 2)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
            x = x + block.attn.c_proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
            present += [k, v]
        lm_head: Any = self.model.lm_head
        return lm_head(model.ln_f(x)), *present

    @staticmethod
    def _heads(x: torch.Tensor, block: Any) -> torch.Tensor:
        return x.unflatten(2, (block.attn.n_head, -1)).transpose(1, 2)


def write_peer(model: GPT, hf_folder: Path, modules: Path, out: Path) -> None:
    """A folder with the page, what it loads, and the model.

    Args:
        hf_folder: the same model for transformers, by `gptexport hf`.
        modules: the node_modules of @huggingface/transformers.
    """
    place = out / "models" / "gpt2"
    (place / "onnx").mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (hf_folder / name).exists():
            shutil.copyfile(hf_folder / name, place / name)
    config = json.loads((place / "config.json").read_text())
    config["transformers.js_config"] = {"use_external_data_format": {"model.onnx": True}}
    (place / "config.json").write_text(json.dumps(config))
    _export(model, place / "onnx" / "model.onnx")
    for file, folder in FILES.items():
        (out / folder).mkdir(exist_ok=True)
        shutil.copyfile(modules / file, out / folder / Path(file).name)
    shutil.copytree(modules / "onnxruntime-common" / "dist" / "esm", out / "common")
    shutil.copyfile(PAGE, out / "check.html")


def _export(model: GPT, path: Path) -> None:
    config = model.config
    past = [torch.randn(2, config.n_head, 3, config.head_size) for _ in range(2 * config.n_layer)]
    given = (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64), past)
    kinds = [(layer, kind) for layer in range(config.n_layer) for kind in ("key", "value")]
    free = torch.export.Dim.DYNAMIC
    batch = torch.export.Dim("batch_size")  # by this name transformers.js makes the empty cache
    program = torch.onnx.export(
        WithCache(model).eval(),
        given,
        input_names=["input_ids", "attention_mask", *(f"past_key_values.{i}.{kind}" for i, kind in kinds)],
        output_names=["logits", *(f"present.{i}.{kind}" for i, kind in kinds)],
        dynamic_shapes=({0: batch, 1: free}, {0: batch, 1: free}, [{0: batch, 2: free} for _ in past]),
        dynamo=True,
    )
    assert program is not None
    program.save(str(path), external_data=True)
    data = path.with_name(path.name + ".data")
    _rename_data(path, data.name, "model.onnx_data")  # as transformers.js looks for it
    data.rename(path.with_name("model.onnx_data"))


def _rename_data(graph: Path, old: str, new: str) -> None:
    import onnx

    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    onnx.save(model, graph)


def check_peer(model: GPT, folder: Path, ids: list[int]) -> float:
    """The largest difference of its logits from eager's, by ONNX Runtime: it is the same model."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "models" / "gpt2" / "onnx" / "model.onnx"))
    config = model.config
    empty = np.zeros((1, config.n_head, 0, config.head_size), np.float32)
    feeds: dict[str, Any] = {item.name: empty for item in session.get_inputs()}
    feeds |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    feeds = {name: value for name, value in feeds.items() if name in {item.name for item in session.get_inputs()}}
    got = session.run(["logits"], feeds)[0]
    with torch.no_grad():
        return float(np.abs(got - model(torch.tensor([ids])).numpy()).max())
