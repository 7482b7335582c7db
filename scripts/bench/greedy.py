"""Does a bundle generate what its model says, and is a step's logits as near to the truth as eager's?

    python -m scripts.bench.greedy demo/gpt --against demo/ckpt.pt --tokens demo/val.bin

200 fixed prompts of random lengths 1 ... block_size-1 go on greedily to block_size tokens: each alone, in batches of
mixed lengths, and from forks of one prefilled prompt. Every new token must be the argmax of eager PyTorch without a
cache, ties (logits within 1e-4) excepted and counted. Then texts are fed token by token, and the logits of every
position compared with the model in float64, in units of eager's own error.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from gptexport.checkpoints import load_checkpoint
from gptexport.parity import read_tokens
from gptexport.teacher_forcing import feed_pieces
from gptexport_runtime import Session, load
from tests.support.greedy import Agreement, Ids, agreement, fixed_prompts

BATCH, FORKS, TEXTS = 8, 4, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--against", required=True, metavar="CHECKPOINT")
    parser.add_argument("--tokens", type=Path, help="text as ids; random ids otherwise")
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()
    loaded = load_checkpoint(args.against)
    text = read_tokens(args.tokens, loaded.vocab_size) if args.tokens else None
    limits = {"block_size": loaded.block_size, "vocab_size": loaded.vocab_size}
    prompts = fixed_prompts(args.prompts, **limits, text=text)
    with load(args.bundle, "cpu") as session:
        wrong = 0
        for name, generate in (("alone", alone), ("batches of 8", in_batches), ("forks of 4", forked)):
            began = time.perf_counter()
            texts, new = generate(session, prompts)
            found: Agreement = agreement(loaded.model, texts, new)
            wrong += found.wrong
            seconds = time.perf_counter() - began
            print(f"{name}: {found.tokens} new tokens, {found.wrong} wrong, {found.ties} ties ({seconds:.0f} s)")
        ratio = noise_ratio(session, loaded.model, fixed_texts(TEXTS, text=text, **limits))
    print(f"noise ratio of every position, fed one by one: {ratio:.2f}")
    raise SystemExit(bool(wrong) or not ratio <= 2)


def alone(session: Session, prompts: list[Ids]) -> tuple[list[Ids], list[Ids]]:
    return prompts, [session.generate([prompt], temperature=0)[0] for prompt in prompts]


def in_batches(session: Session, prompts: list[Ids]) -> tuple[list[Ids], list[Ids]]:
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    return prompts, [row for batch in batches for row in session.generate(batch, temperature=0)]


def forked(session: Session, prompts: list[Ids]) -> tuple[list[Ids], list[Ids]]:
    """Every fourth prompt, in copies that each get another next token."""
    texts: list[Ids] = []
    new: list[Ids] = []
    block_size, vocab_size = session.config.block_size or 0, session.config.vocab_size
    for prompt in prompts[::FORKS]:
        if len(prompt) + 1 >= block_size:
            continue
        with session.cache() as cache:
            session.generate([prompt], max_new_tokens=1, temperature=0, cache=cache)
            with cache.fork(FORKS) as fork:
                rows = [np.append(prompt, (prompt[-1] + number) % vocab_size) for number in range(FORKS)]
                texts += rows
                new += session.generate(rows, temperature=0, cache=fork)
    return texts, new


def fixed_texts(count: int, *, block_size: int, vocab_size: int, text: Ids | None) -> np.ndarray:
    random = np.random.default_rng(7)
    if text is None:
        return random.integers(0, vocab_size, (count, block_size))
    starts = random.integers(0, len(text) - block_size, count)
    return np.stack([np.asarray(text[start : start + block_size], np.int64) for start in starts])


@torch.inference_mode()
def noise_ratio(session: Session, model: nn.Module, ids: np.ndarray) -> float:
    eager = model(torch.from_numpy(ids)).numpy().astype(np.float64)
    truth = copy.deepcopy(model).double()(torch.from_numpy(ids)).numpy()
    found = np.empty(eager.shape, np.float64)
    ends = [np.full(len(ids), position + 1) for position in range(ids.shape[1])]
    with session.cache(rows=len(ids)) as cache:
        for position, (_, logits) in enumerate(feed_pieces(cache, list(ids), ends)):
            found[:, position] = logits
    return float(np.sqrt(np.square(found - truth).mean() / np.square(eager - truth).mean()))


if __name__ == "__main__":
    main()
