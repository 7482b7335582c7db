"""Logits and generated text from a bundle of the byte-level demo model, without torch.

    python -m scripts.demo.sample demo/gpt --tokens 300
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from gptexport_runtime import Session, load
from gptexport_runtime.text import Tokenizer, bundle_tokenizer

PROMPT = 'def read(self, size=-1):\n    """'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()
    words = bundle_tokenizer(args.bundle)
    if words is None:
        raise SystemExit(f"{args.bundle} carries no tokenizer: export it with --tokenizer bytes")
    with load(args.bundle) as gpt:
        show_logits(gpt, words)
        show_text(gpt, words, args.tokens)
    loaded = {"torch", "onnx", "click"} & set(sys.modules)
    print(f"(this process imported {', '.join(sorted(loaded)) or 'neither torch nor onnx'})")
    if loaded:
        raise SystemExit("the runtime must run without torch, onnx and click")


def show_logits(gpt: Session, words: Tokenizer) -> None:
    logits = gpt.logits([words.encode(PROMPT)])  # (1,T,V)
    best = np.argsort(logits[0, -1])[::-1][:5].tolist()
    print(f"logits of {PROMPT!r}: shape {logits.shape}, {logits.dtype}, on {gpt.device} by {gpt.backend}")
    print("next token: " + ", ".join(f"{words.show(i)!r} {logits[0, -1, i]:.2f}" for i in best))


def show_text(gpt: Session, words: Tokenizer, tokens: int) -> None:
    print("\n" + PROMPT, end="")
    began = time.monotonic()
    text = words.stream()
    for (token,) in gpt.stream(
        [words.encode(PROMPT)], max_new_tokens=tokens, temperature=0.7, top_p=0.95, seed=42, slide=True
    ):
        print(text.feed([token]), end="", flush=True)
    print(f"{text.end()}\n\n{tokens} tokens in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
