"""What a GELU that computes in 16 bits throughout, as ONNX Runtime's FastGelu does on CUDA, adds to a model's noise.

    python -m scripts.gpu.gelu_noise

Eager PyTorch computes GELU in float32 and rounds once. Both are compared with the same weights in float64, on a CPU.
"""

from __future__ import annotations

import copy

import torch
import torch.nn as nn

from gptexport.architectures.gpt2 import GPT, GPTConfig


class Native(nn.Module):
    """x * (a + a * tanh(x * (c * x * x + b))), each operation rounded to x's dtype (FastGeluKernel)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = (torch.tensor(value, dtype=x.dtype) for value in (0.5, 0.7978845608028654, 0.035677408136300125))
        return x * (a + a * torch.tanh(x * (c * x * x + b)))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=128, vocab_size=997, n_layer=12, n_head=6, n_embd=384, gelu="tanh")).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.06)
        else:
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids = torch.randint(0, 997, (2, 128))
    for dtype in (torch.bfloat16, torch.float16):
        eager = copy.deepcopy(model).to(dtype)
        native = copy.deepcopy(eager)
        for block in native.get_submodule("transformer.h").children():
            block.get_submodule("mlp").gelu = Native()
        expected = copy.deepcopy(eager).double()(ids)
        noise, with_native = ((m(ids).double() - expected).square().mean().sqrt().item() for m in (eager, native))
        print(f"{dtype}: {with_native / noise:.3f} × eager's noise, {noise:.1e} RMS")


if __name__ == "__main__":
    main()
