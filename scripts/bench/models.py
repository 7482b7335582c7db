"""GPT-2s of random weights, in real formats: what is measured depends on shapes, not on what a model has learned.

python -m scripts.bench.models out/ --size 355M --format huggingface
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from gptexport.architectures.gpt2 import GPTConfig

SIZES = {
    "124M": GPTConfig(),
    "355M": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "774M": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "1558M": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
    "tiny": GPTConfig(block_size=64, vocab_size=101, n_layer=2, n_head=2, n_embd=32),
}
FORMATS = ("nanogpt", "huggingface")
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets ckpt.pt, or Hugging Face's config.json and model.safetensors")
    parser.add_argument("--size", choices=SIZES, default="124M")
    parser.add_argument("--format", choices=FORMATS, default="nanogpt")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(args.folder, SIZES[args.size], args.format)


def write_apart(folder: Path, size: str, kind: str = "nanogpt") -> Path:
    """Write a checkpoint in a process of its own, and return its path.

    A child's peak memory begins at its parent's size: who measures its children's must not import torch itself.
    """
    command = [sys.executable, "-m", "scripts.bench.models", str(folder), "--size", size, "--format", kind]
    subprocess.run(command, check=True)
    return folder / "ckpt.pt" if kind == "nanogpt" else folder


def write_checkpoint(folder: Path, config: GPTConfig, kind: str) -> None:
    """A checkpoint in its real format, of random weights as GPT-2 begins with."""
    import torch

    from gptexport.architectures.gpt2 import GPT

    torch.manual_seed(0)
    state = GPT(config).state_dict()
    for name, weight in state.items():
        if weight.dim() > 1 and name != "lm_head.weight":  # which is wte
            torch.nn.init.normal_(weight, std=0.02)
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    if kind == "nanogpt":
        args = {**sizes, "block_size": config.block_size, "bias": config.bias, "dropout": 0.0}
        torch.save({"model": state, "model_args": args, "iter_num": 0, "best_val_loss": 0.0}, folder / "ckpt.pt")
        return
    from safetensors.torch import save_file

    del state["lm_head.weight"]
    tensors = {
        name.removeprefix("transformer."): (p.t() if name.endswith(TRANSPOSED) else p).contiguous()
        for name, p in state.items()
    }
    save_file(tensors, folder / "model.safetensors")
    fields = {"model_type": "gpt2", "n_positions": config.block_size, "activation_function": "gelu_new"}
    (folder / "config.json").write_text(json.dumps({**fields, **sizes}))


if __name__ == "__main__":
    main()
