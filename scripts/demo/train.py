"""Train a small byte-level GPT on the text of this Python's own standard library, and save it as its trainers do.

    python -m scripts.demo.train demo/ --seconds 90 --arch llama

Writes a checkpoint to demo/ckpt.pt (nanoGPT's, for gpt2), demo/hf (a Hugging Face folder, for llama) or demo/nanochat,
its path to demo/checkpoint.txt, and demo/val.bin (held-out text as uint16 ids, as nanoGPT has it).
"""

from __future__ import annotations

import argparse
import math
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from scripts.demo.models import BLOCK_SIZE, DEMOS, VOCAB_SIZE

BATCH = 12
WARMUP = 0.05  # of the time
EVAL_EVERY = 10.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--arch", choices=DEMOS, default="gpt2")
    args = parser.parse_args()

    train, val = split(read_standard_library())
    torch.manual_seed(1337)
    demo = DEMOS[args.arch]
    model = demo.make()
    choose_threads(model, train)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"training {parameters / 1e6:.1f} M parameters on {len(train) / 1e6:.1f} MB of Python for {args.seconds:.0f} s"
    )
    step, loss = fit(model, train, val, args.seconds, demo.learning_rate)
    args.out.mkdir(parents=True, exist_ok=True)
    path = demo.save(model, args.out, step, loss)
    (args.out / "checkpoint.txt").write_text(f"{path}\n")
    val[: 1 << 20].astype(np.uint16).tofile(args.out / "val.bin")
    print(f"wrote {path} and {args.out / 'val.bin'}")


def read_standard_library() -> np.ndarray:
    """The modules of the standard library, end to end, in a fixed order: bytes as uint8."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if "site-packages" not in p.parts and "test" not in p.parts)
    return np.frombuffer(b"\n".join(p.read_bytes() for p in files), dtype=np.uint8)


def split(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cut = int(len(text) * 0.95)
    return text[:cut], text[cut:]


def batch(text: np.ndarray, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    starts = draw.integers(0, len(text) - BLOCK_SIZE - 1, BATCH)
    rows = np.stack([text[s : s + BLOCK_SIZE + 1] for s in starts]).astype(np.int64)
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x).view(-1, VOCAB_SIZE), y.reshape(-1))


@torch.no_grad()
def evaluate(model: nn.Module, val: np.ndarray) -> float:
    draw = np.random.default_rng(7)
    return float(np.mean([loss_of(model, *batch(val, draw)).item() for _ in range(4)]))


def choose_threads(model: nn.Module, text: np.ndarray) -> None:
    """One thread or all, whichever takes a step faster: beside other work, threads that wait for one another crawl."""
    seconds = {}
    x, y = batch(text, np.random.default_rng(0))
    for threads in (torch.get_num_threads(), 1):
        torch.set_num_threads(threads)
        loss_of(model, x, y).backward()
        began = time.monotonic()
        for _ in range(2):
            loss_of(model, x, y).backward()
        seconds[threads] = time.monotonic() - began
    model.zero_grad(set_to_none=True)
    torch.set_num_threads(min(seconds, key=seconds.__getitem__))


def fit(model: nn.Module, train: np.ndarray, val: np.ndarray, seconds: float, peak: float) -> tuple[int, float]:
    """AdamW with warm-up to the learning rate `peak`, and a cosine that ends when the time does."""
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99))
    draw = np.random.default_rng(1337)
    began = last_eval = time.monotonic()
    step, val_loss = 0, float("nan")
    while (spent := (time.monotonic() - began) / seconds) < 1.0:
        lr = peak * min(spent / WARMUP, 0.5 * (1 + math.cos(math.pi * spent)) + 0.02, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = loss_of(model, *batch(train, draw))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        if now - last_eval >= EVAL_EVERY:
            val_loss, last_eval = evaluate(model, val), time.monotonic()
            print(
                f"\r{now - began:5.0f} s  step {step:5d}  loss {loss.item():.3f}  val {val_loss:.3f} nats/byte",
                flush=True,
            )
        elif sys.stdout.isatty():
            print(f"\r{now - began:5.0f} s  step {step:5d}  loss {loss.item():.3f}", end="", flush=True)
    val_loss = evaluate(model, val)
    print(f"\r{seconds:5.0f} s  step {step:5d}  done          val {val_loss:.3f} nats/byte")
    return step, val_loss


if __name__ == "__main__":
    main()
