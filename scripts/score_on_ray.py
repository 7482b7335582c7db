"""`gptexport score --ray` beside one machine: the same files, with actors and nodes that die.

    python -m scripts.score_on_ray demo/gpt demo/val.bin

Needs `pip install 'gptexport[ray]'`. Ray is started here: first by itself, then as four nodes of one CPU each.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ray.cluster_utils import Cluster

from gptexport.score import Asked, score_corpus
from gptexport.score.on_ray import Fleet
from scripts.bench.score import corpus, files_of

TOKENS = 100_000


def main() -> None:
    bundle, tokens = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as work:
        corpus(tokens, Path(work, "corpus.jsonl"), TOKENS)
        asked = Asked(artifact=bundle, files=[Path(work, "corpus.jsonl")], out=Path(work, "alone"), keep_logprobs=True)
        asked = replace(asked, threads=1, batch_tokens=1024, shard_tokens=1 << 14)
        score_corpus(asked, None)
        whole = files_of(asked.out)
        again: Callable[[str], Asked] = lambda name: replace(asked, out=Path(work, name))  # noqa: E731
        failed = _compare("local", again("local"), Fleet(), whole)
        failed += _compare("an actor killed", again("actor"), Fleet(), whole, _kill_an_actor)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        fleet = Fleet(address=cluster.address)
        failed += _compare("four nodes", again("nodes"), fleet, whole)
        failed += _compare("a node killed", again("node"), fleet, whole, lambda: cluster.remove_node(nodes[-1], False))
        cluster.shutdown()
    sys.exit(bool(failed))


def _compare(
    name: str, asked: Asked, fleet: Fleet, whole: dict[str, bytes], disturb: Callable[[], None] | None = None
) -> int:
    """Score, and `disturb` once two parts are there. 1: other files came out."""
    parts, began, done = asked.out / "parts", time.monotonic(), threading.Event()

    def wait() -> None:
        while not done.wait(0.02):
            if len(list(parts.glob("part-*"))) >= 2:
                assert disturb is not None
                disturb()
                print(f"      {name}: after {len(list(parts.glob('part-*')))} parts")
                return

    watcher = threading.Thread(target=wait) if disturb is not None else None
    if watcher is not None:
        watcher.start()
    score_corpus(asked, None, run=fleet)
    done.set()
    if watcher is not None:
        watcher.join()
    same = files_of(asked.out) == whole
    print(f"{'ok   ' if same else 'FAIL '} {name}: {len(whole)} files in {time.monotonic() - began:.0f} s")
    return not same


def _kill_an_actor() -> None:
    """By SIGKILL, as the system does when memory is short."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes().startswith(b"ray::_Worker"):
                os.kill(int(file.parent.name), signal.SIGKILL)
                return
        except (OSError, ProcessLookupError):
            continue
    raise RuntimeError("no actor was found to kill.")


if __name__ == "__main__":
    main()
