"""The exported graph is the model: against transformers' own GPT-2 with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from tests.support.builders import SIZES, tiny_build_nanogpt, tiny_huggingface, tiny_nanogpt
from tests.support.few import few

GRID = [(1, 1), (1, 2), (3, 5), (2, 11), (1, 17), (8, 3)]
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def transformers_model(state: dict[str, torch.Tensor], activation: str, *, bias: bool = True) -> Any:
    """transformers' GPT2LMHeadModel with a nanoGPT state_dict: Conv1D keeps (in,out), and has biases always."""
    import transformers

    sizes: dict[str, Any] = {
        "n_positions": SIZES["block_size"],
        **{k: v for k, v in SIZES.items() if k != "block_size"},
    }
    config = transformers.GPT2Config(**sizes, activation_function=activation, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    missing, unexpected = model.load_state_dict(
        {name: (w.t() if name.endswith(CONV1D) else w) for name, w in state.items()}, strict=False
    )
    assert not unexpected
    assert bias != bool(missing)
    with torch.no_grad():
        for name in missing:
            model.get_parameter(name).zero_()
    return model


def nanogpt(path: Path) -> tuple[Path, Any]:
    file = tiny_nanogpt(path / "ckpt.pt")
    return file, transformers_model(torch.load(file)["model"], "gelu")


def nanogpt_without_bias(path: Path) -> tuple[Path, Any]:
    file = tiny_nanogpt(path / "ckpt.pt", bias=False)
    return file, transformers_model(torch.load(file)["model"], "gelu", bias=False)


def build_nanogpt(path: Path) -> tuple[Path, Any]:
    file = tiny_build_nanogpt(path / "model_19072.pt")
    state = load_checkpoint(str(file)).model.state_dict()
    return file, transformers_model(dict(state), "gelu_new")


def huggingface(path: Path) -> tuple[Path, Any]:
    import transformers

    folder = tiny_huggingface(path / "hf", prefix=True)
    return folder, transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def huggingface_with_outliers(path: Path) -> tuple[Path, Any]:
    """Real GPT-2s have residual channels a hundred times the others."""
    import transformers

    folder = tiny_huggingface(path / "hf", safetensors=False)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        model.transformer.wte.weight[:, 3] *= 60
        model.transformer.h[0].ln_1.weight[3] /= 60
    model.save_pretrained(path / "outliers")
    return path / "outliers", model


@pytest.mark.parametrize(
    "source", few([nanogpt, huggingface_with_outliers, nanogpt_without_bias, build_nanogpt, huggingface], 2)
)
def test_logits_are_those_of_transformers(source: Callable[[Path], tuple[Path, Any]], tmp_path: Path) -> None:
    """Relative RMS at most 2e-6 in float32, at every shape of the grid."""
    file, reference = source(tmp_path)
    export_onnx(load_checkpoint(str(file)), tmp_path / "gpt")
    draw = np.random.default_rng(0)
    with gptexport_runtime.load(tmp_path / "gpt", device="cpu") as gpt:
        for shape in GRID:
            ids = draw.integers(0, SIZES["vocab_size"], shape)
            with torch.no_grad():
                expected = reference(torch.from_numpy(ids)).logits.double().numpy()
            actual = gpt.logits(ids)
            relative = np.sqrt(np.mean((actual - expected) ** 2)) / np.sqrt(np.mean(expected**2))
            assert relative <= 2e-6, (shape, relative)
