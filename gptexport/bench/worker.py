"""One side of a comparison as a process of its own, so that no side runs on another's threads or in its memory.

    python -m gptexport.bench.worker '{"side": "session", "artifact": "gpt2/", "device": "cpu", "threads": 2}'

It answers a line with what it is, then every line that asks for a burst of calls with their seconds. All are JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

import numpy as np
import numpy.typing as npt

from gptexport import errors
from gptexport_runtime import ExecutionError, GPTExportError, Session
from gptexport_runtime import errors as runtime_errors
from gptexport_runtime.contract.heads import HEADS, LOGITS, Head
from gptexport_runtime.generate.cache import Cache

Ids = npt.NDArray[np.int64]
Shape = tuple[int, int]
Forward = Callable[[Ids], object]  # ids (B,T) to logits


@dataclass(frozen=True)
class Burst:
    """Calls back to back."""

    seconds: list[float]  # of each
    preempted: float  # times a second that a thread of the process lost its core to another program
    peak: int | None = None  # bytes: the most memory that the process has held so far; None where Linux is not


def burst(run: Forward, ids: Ids, *, settle: float, spend: float) -> Burst:
    """Time the calls that follow `settle` seconds of calls that do not count.

    Args:
        settle: 0 counts the very first call.
        spend: calls go on until so many seconds have passed; one is made in any case.
    """
    end = time.perf_counter() + settle
    while time.perf_counter() < end:
        run(ids)
    seconds: list[float] = []
    first, before = time.perf_counter(), preemptions()
    end = first + spend
    while not seconds or time.perf_counter() < end:
        began = time.perf_counter()
        run(ids)
        seconds.append(time.perf_counter() - began)
    return Burst(seconds, (preemptions() - before) / (time.perf_counter() - first), _peak())


def _peak() -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def preemptions() -> int:
    """How often threads of this process were made to give their core away; 0 on Windows, which does not count them."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def random_ids(shape: Shape, vocab_size: int) -> Ids:
    return np.random.default_rng(0).integers(0, vocab_size, shape)


class Worker:
    """The parent's end: a side that is asked for bursts."""

    def __init__(self, specification: Mapping[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        """What the side says of itself, once it is loaded.

        Raises:
            GPTExportError: it could not be, by the class that it was raised as.
        """
        return self._answer()

    def __call__(self, shape: Shape, *, settle: float, spend: float) -> Burst:
        """Calls at (B,T); see `burst`."""
        assert self.process.stdin is not None
        asked = json.dumps({"shape": shape, "settle": settle, "spend": spend})
        with suppress(BrokenPipeError):  # the answer says why
            print(asked, file=self.process.stdin, flush=True)
        return Burst(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ExecutionError(f"a process of bench ended with {self.process.wait()}; was there enough memory?")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            name, message = answer["failed"]
            kinds = {**vars(errors), **vars(runtime_errors)}
            raise kinds.get(name, GPTExportError)(message)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(specifications: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Worker]]:
    """A worker for each specification, ended with the `with`."""
    started: dict[str, Worker] = {}
    try:
        for name, specification in specifications.items():
            started[name] = Worker(specification)
        yield started
    finally:
        for worker in started.values():
            worker.end()


def _session(
    artifact: str, device: str, threads: int | None, head: str = LOGITS.name
) -> tuple[Forward, dict[str, Any]]:
    from gptexport_runtime import load

    session = load(artifact, device, threads=threads)
    model = session.manifest.model if session.manifest else {}
    return _call(session, HEADS[head]), {"vocab_size": session.config.predicted_ids, "model": dict(model)}


def _call(session: Session, head: Head) -> Forward:
    """What is timed of a head: a run of its graph; with a cache, the step that reads the last of T tokens."""
    buffers: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
    caches: dict[tuple[int, ...], Cache] = {}

    def into_one_buffer(ids: Ids) -> object:
        if ids.shape not in buffers:
            buffers.clear()
            buffers[ids.shape] = np.empty((*ids.shape, session.config.vocab_size), np.float32)
        return session.logits(ids, out=buffers[ids.shape])

    def step(ids: Ids) -> object:
        if ids.shape not in caches:
            caches.clear()
            caches[ids.shape] = session.cache(len(ids))
        return session.generate(ids, max_new_tokens=1, temperature=0, cache=caches[ids.shape])

    if head.cached:
        return step
    return into_one_buffer if head is LOGITS else lambda ids: session.run(head, ids)


def _eager(artifact: str, checkpoint: str, threads: int) -> tuple[Forward, dict[str, Any]]:
    import torch

    from gptexport.artifacts import describe_artifact
    from gptexport.parity import load_for

    if torch.get_num_threads() != threads:  # asking for as many as it has makes it slower by a twentieth
        torch.set_num_threads(threads)
    loaded = load_for(describe_artifact(Path(artifact)), checkpoint)

    def run(ids: Ids) -> object:
        with torch.inference_mode():
            return loaded.model(torch.from_numpy(ids))

    model = {"architecture": loaded.architecture.name, **loaded.config.to_dict()}
    return run, {"vocab_size": loaded.predicted_ids, "model": model}


SIDES: dict[str, Callable[..., tuple[Forward, dict[str, Any]]]] = {"session": _session, "eager": _eager}


def main() -> None:
    """Be a side until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a user's module prints is no answer
    specification = json.loads(sys.argv[1])
    try:
        run, facts = SIDES[specification.pop("side")](**specification)
        print(json.dumps(facts), file=answers)
        for line in sys.stdin:
            asked = json.loads(line)
            ids = random_ids(tuple(asked["shape"]), facts["vocab_size"])
            made = burst(run, ids, settle=asked["settle"], spend=asked["spend"])
            print(json.dumps(asdict(made)), file=answers)
    except KeyboardInterrupt:  # of the terminal, which tells the parent too
        pass
    except GPTExportError as error:
        print(json.dumps({"failed": [type(error).__name__, str(error)]}), file=answers)


if __name__ == "__main__":
    main()
