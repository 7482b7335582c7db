"""Logits and sampled text from a bundle of the byte-level demo model, without torch.

python scripts/sample_demo.py demo/gpt --characters 300
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from gptexport_runtime import Session, load

PROMPT = b'def read(self, size=-1):\n    """'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--characters", type=int, default=300)
    args = parser.parse_args()
    with load(args.bundle) as gpt:
        show_logits(gpt)
        show_text(gpt, args.characters)
    loaded = {"torch", "onnx", "click"} & set(sys.modules)
    print(f"(this process imported {', '.join(sorted(loaded)) or 'neither torch nor onnx'})")
    if loaded:
        raise SystemExit("the runtime must run without torch, onnx and click")


def show_logits(gpt: Session) -> None:
    logits = gpt.logits([list(PROMPT)])  # (1,T,V)
    best = np.argsort(logits[0, -1])[::-1][:5]
    print(f"logits of {PROMPT.decode()!r}: shape {logits.shape}, {logits.dtype}, on {gpt.device} by {gpt.backend}")
    print("next character: " + ", ".join(f"{chr(i)!r} {logits[0, -1, i]:.2f}" for i in best))


def show_text(gpt: Session, characters: int) -> None:
    draw = np.random.default_rng(42)
    ids = list(PROMPT)
    print("\n" + PROMPT.decode(), end="")
    began = time.monotonic()
    block_size = gpt.config.block_size or len(ids) + characters
    for _ in range(characters):
        logits = gpt.last_logits([ids[-block_size:]])[0].astype(np.float64) / 0.7  # temperature
        p = np.exp(logits - logits.max())
        ids.append(int(draw.choice(len(p), p=p / p.sum())))
        print(bytes(ids[-1:]).decode("latin-1"), end="", flush=True)
    print(f"\n\n{characters} characters in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
