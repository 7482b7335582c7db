"""Time and memory of an export at GPT-2's size, and of the runtime's start. Random weights: only shapes matter here.

    python scripts/bench_export.py                       # 124M, in a temporary folder
    python scripts/bench_export.py --format huggingface --rounds 5

Every figure is of a whole process: wall seconds from its start to its end, and its peak resident memory. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from gptexport.config import GPTConfig

CONFIGS = {
    "124M": GPTConfig(),
    "355M": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "1558M": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
    "tiny": GPTConfig(block_size=64, vocab_size=101, n_layer=2, n_head=2, n_embd=32),
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

FIRST_LOGITS = """
import sys
from gptexport_runtime import load
with load(sys.argv[1], device="cpu") as gpt:
    gpt.logits([[464, 3797, 3332, 319, 262, 2603, 11, 290]]) if gpt.config.vocab_size > 4000 else gpt.logits([[1] * 8])
"""


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CONFIGS, default="124M")
    parser.add_argument("--format", choices=("nanogpt", "huggingface"), default="nanogpt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # in a process of its own: see run
    args = parser.parse_args()
    if args.write:
        write_checkpoint(args.write, CONFIGS[args.size], args.format)
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--write", folder], check=True)
        checkpoint = Path(folder) / "ckpt.pt" if args.format == "nanogpt" else Path(folder)
        weights = 4 * CONFIGS[args.size].parameters
        bundle = str(Path(folder) / "bundle")
        cli = [sys.executable, "-m", "gptexport"]
        commands = {
            "gptexport --help": [*cli, "--help"],
            "export": [*cli, "onnx", str(checkpoint), "-o", bundle, "--force", "-q"],
            "start to first logits, 1x8": [sys.executable, "-c", FIRST_LOGITS, bundle],
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        run(commands["export"])  # the bundle must be there; and the disk cache warm
        for _ in range(args.rounds):
            for name, command in commands.items():
                runs[name].append(run(command))
    print(
        f"{args.size}, {args.format}, weights {weights / 1e6:.0f} MB, torch {version('torch')}, {os.cpu_count()} cores"
    )
    for name, of_command in runs.items():
        seconds = statistics.median(r.seconds for r in of_command)
        peak = statistics.median(r.peak_mb for r in of_command)
        print(f"{name:28} {seconds:7.2f} s   peak {peak:7.0f} MB = {peak * 1e6 / weights:.2f} × the weights")


def write_checkpoint(folder: Path, config: GPTConfig, kind: str) -> None:
    """A checkpoint in its real format, of random weights as GPT-2 begins with."""
    import torch

    from gptexport.models.gpt2 import GPT

    torch.manual_seed(0)
    state = GPT(config).state_dict()
    for name, weight in state.items():
        if weight.dim() > 1 and name != "lm_head.weight":  # which is wte
            torch.nn.init.normal_(weight, std=0.02)
    if kind == "nanogpt":
        names = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")
        args = {name: getattr(config, name) for name in names} | {"dropout": 0.0}
        torch.save({"model": state, "model_args": args, "iter_num": 0, "best_val_loss": 0.0}, folder / "ckpt.pt")
        return
    from safetensors.torch import save_file

    del state["lm_head.weight"]
    tensors = {
        name.removeprefix("transformer."): (p.t() if name.endswith(TRANSPOSED) else p).contiguous()
        for name, p in state.items()
    }
    save_file(tensors, folder / "model.safetensors")
    fields = {"n_positions": config.block_size, "vocab_size": config.vocab_size, "activation_function": "gelu_new"}
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **fields, **sizes}))


def run(command: list[str]) -> Run:
    """Run to the end; wait4 gives the peak memory of this process alone.

    A child's peak begins at its parent's size, so this script must stay small: it never imports torch itself.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return Run(seconds, usage.ru_maxrss * 1024 / 1e6)  # ru_maxrss is in KiB on Linux


if __name__ == "__main__":
    main()
