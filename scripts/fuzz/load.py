"""Sessions that are pushed: their bundle is replaced meanwhile, threads share them, they run for long.

    python -m scripts.fuzz.load replaced --count 2000     load() and four calls while the bundle is replaced in a loop
    python -m scripts.fuzz.load threads --count 10000     16 threads, mixed calls, bits as of one thread
    python -m scripts.fuzz.load soak --count 20000        memory and handles of one session, generators left half done

Exit code 1 if a number was wrong, an error not ours, or memory grew by more than 2 %.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from typing import Any

from gptexport_runtime import GPTExportError, Session, load

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 64}
GROWTH = 0.02
Call = Callable[[Session], bytes]
Rows = list[list[int]]
CONTEXT = multiprocessing.get_context("spawn")  # whose children begin with nothing


def calls(count: int, seed: int) -> list[Call]:
    """What users ask of a session, each with ids of its own; the answer in bytes."""
    random = Random(seed)
    found: list[Call] = []
    for _ in range(count):
        rows = [[random.randrange(64) for _ in range(random.randrange(2, 9))] for _ in range(random.randrange(1, 4))]
        found += [partial(call, rows=rows) for call in (_logits, _last_logits, _score, _generate)]
    return found


def _logits(gpt: Session, rows: Rows) -> bytes:
    return gpt.logits(rows).tobytes()


def _last_logits(gpt: Session, rows: Rows) -> bytes:
    return gpt.last_logits(rows).tobytes()


def _score(gpt: Session, rows: Rows) -> bytes:
    return gpt.score(rows).logprobs.tobytes()


def _generate(gpt: Session, rows: Rows) -> bytes:
    return b"".join(row.tobytes() for row in gpt.generate(rows, max_new_tokens=6, seed=3))


def export(root: Path, name: str, seed: int) -> Path:
    """A bundle, written by another process: this one never imports torch, whose memory is not a session's."""
    child = CONTEXT.Process(target=_export, args=(root, name, seed))
    child.start()
    child.join()
    return root / name


def _export(root: Path, name: str, seed: int) -> None:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx
    from tests.support.builders import tiny_nanogpt

    export_onnx(load_checkpoint(str(tiny_nanogpt(root / f"{name}.pt", seed=seed, **SIZES))), root / name)


def replaced(root: Path, count: int, seed: int) -> list[str]:
    """Every answer of a session is one model's, and the same one's; what cannot be is an ArtifactError."""
    asked = calls(2, seed)
    answers = []
    for number, name in enumerate("ab"):
        with load(export(root, name, number), "cpu", threads=1) as session:
            answers.append([call(session) for call in asked])
    stop = CONTEXT.Event()
    replacing = CONTEXT.Process(target=_replace, args=(root, seed, stop))
    replacing.start()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    try:
        while not (root / "gpt").is_dir():
            time.sleep(0.01)
        for number in range(count):
            outcome = _load_once(root / "gpt", Random(f"{seed} {number}"), asked, answers)
            outcomes[outcome] += 1
            if outcome.startswith("wrong"):
                failures.append(f"load {number}: {outcome}")
    finally:
        stop.set()
        replacing.join()
    print(", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common()))
    return failures


def _load_once(path: Path, random: Random, asked: Sequence[Call], answers: Sequence[Sequence[bytes]]) -> str:
    told = False
    models = set(range(len(answers)))
    try:
        with load(path, "cpu", threads=1, verify=random.random() < 0.3) as session:
            for at in random.sample(range(len(asked)), 4):
                try:
                    got = asked[at](session)
                except GPTExportError:  # replaced since
                    told = True
                    continue
                models &= {model for model, known in enumerate(answers) if known[at] == got}
                if not models:
                    return "wrong: numbers of no model, or of two"
    except GPTExportError as error:
        return f"refused with {type(error).__name__}"
    except Exception as error:
        return f"wrong: {error!r:.200}"
    return "one model to the end, calls refused" if told else "one model to the end"


def _replace(root: Path, seed: int, stop: Event) -> None:
    """As `--force` does, again and again."""
    from gptexport.staging import staged

    random = Random(seed)
    while not stop.is_set():
        source = root / random.choice("ab")
        with staged(root / "gpt", force=True) as folder:
            for file in source.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        time.sleep(random.expovariate(random.choice((5, 100))))  # now and then a session has time to open all of it


def threads(root: Path, count: int, seed: int) -> list[str]:
    """16 threads make `count` calls each of one session; bits are those of one thread alone."""
    asked, path = calls(10, seed), export(root, "a", 0)
    with load(path, "cpu", threads=2) as session:
        expected = [call(session) for call in asked]
        failures: list[str] = []

        def work(number: int) -> None:
            random = Random(f"{seed} {number}")
            for _ in range(count):
                at = random.randrange(len(asked))
                try:
                    if asked[at](session) != expected[at]:
                        failures.append(f"call {at} differs in its bits")
                except Exception as error:
                    failures.append(f"call {at}: {error!r:.200}")

        each = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        start = time.monotonic()
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()
    print(f"{16 * count:,} calls of 16 threads in {time.monotonic() - start:.0f} s")
    return failures


def soak(root: Path, count: int, seed: int) -> list[str]:
    """Memory after the first tenth, and at the end; handles too."""
    asked, path = calls(10, seed), export(root, "a", 0)
    failures: list[str] = []
    with load(path, "cpu", threads=1) as session:
        expected = [call(session) for call in asked]
        settled = 0
        handles = 0
        for number in range(count):
            at = number % len(asked)
            if asked[at](session) != expected[at]:
                failures.append(f"call {number} differs in its bits")
            if number % 7 == 0:
                next(session.stream([[1, 2, 3]], max_new_tokens=9))  # and leave it there
            if number % 11 == 0:
                session.cache(2)
            if number == count // 10:
                gc.collect()
                settled, handles = _memory(), _handles()
        gc.collect()
        grown = _memory() / settled - 1
        now = _handles()
    print(
        f"{count:,} calls: {settled / 2**20:.1f} MiB after a tenth, {grown:+.2%} at the end; {handles} → {now} handles"
    )
    if grown > GROWTH or now > handles:
        failures.append(f"memory grew by {grown:.2%}, handles from {handles} to {now}")
    return failures


def _handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _memory() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = {"replaced": (replaced, 2000), "threads": (threads, 10_000), "soak": (soak, 20_000)}
    parser.add_argument("what", choices=work)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    function, usual = work[asked.what]
    with tempfile.TemporaryDirectory(prefix="gptexport-load-") as folder:
        failures = function(Path(folder), asked.count or usual, asked.seed)
    for what, count in Counter(failures).most_common(20):
        print(f"{count} × {what}")
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
