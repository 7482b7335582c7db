"""Shards scored by Ray's actors, one session each, on this machine or on a cluster.

Ray Core, not Ray Data: the driver reads and tokenizes, hands shards out in order as actors are free, and writes what
comes back, so that nothing is materialized and the files are those of one machine. An actor that dies, with its node or
alone, loses one shard, which another gets; a new actor is asked for in its place, and joins when there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gptexport.score.scorer import Logprobs, Scorer
from gptexport.score.windows import Shard
from gptexport_runtime.errors import BackendUnavailableError, ExecutionError

LOCAL = "local"  # an address: Ray is started here, and stopped at the end
MOST_DEATHS = 5  # of actors that had the same shard: it is the shard then, not the machine


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Where shards are scored, and by how many."""

    address: str = LOCAL
    workers: int | None = None  # actors; None: as many as the CPUs of the cluster give scorer.threads each
    gpus: float = 0  # of each actor

    def __call__(self, scorer: Scorer, shards: Iterator[Shard]) -> Iterator[tuple[Shard, list[list[Logprobs]]]]:
        """Score shards in any order.

        Raises:
            BackendUnavailableError: Ray is not installed, or the cluster cannot be reached.
            GPTExportError: as `Scorer`.
        """
        ray = import_ray()
        try:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BackendUnavailableError(f"Ray at {self.address} cannot be reached: {error}.") from error
        try:
            threads = scorer.threads or 1
            count = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
            worker = ray.remote(num_cpus=threads, num_gpus=self.gpus, max_restarts=0)(_Worker)
            yield from _Crew(ray, worker, scorer, count).run(shards)
        finally:
            ray.shutdown()


class _Worker:
    """An actor: a scorer whose sessions are its own."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def ready(self) -> None:
        """Answers when it has a place."""

    def score(self, shard: Shard) -> list[list[Logprobs]]:
        return self._scorer(shard)


@dataclass
class _Crew:
    """Actors, and what each is doing: the reference that it will answer, and the shard it has; None: it is starting."""

    ray: Any
    worker: Any
    scorer: Scorer
    count: int
    doing: dict[Any, tuple[Any, Shard | None]] = field(default_factory=dict)
    again: deque[Shard] = field(default_factory=deque)
    deaths: dict[int, int] = field(default_factory=dict)

    def run(self, shards: Iterator[Shard]) -> Iterator[tuple[Shard, list[list[Logprobs]]]]:
        for _ in range(self.count):
            self._start()
        idle = list[Any]()
        left = True  # there may be more shards
        while True:
            while idle and (self.again or left):
                shard = self.again.popleft() if self.again else next(shards, None)
                if shard is None:
                    left = False
                else:
                    actor = idle.pop()
                    self.doing[actor.score.remote(shard)] = actor, shard
            if not left and not self.again and not any(shard for _, shard in self.doing.values()):
                return
            (done,), _ = self.ray.wait([*self.doing], num_returns=1)
            actor, shard = self.doing.pop(done)
            try:
                found = self.ray.get(done)
            except self.ray.exceptions.RayTaskError as error:
                raise getattr(error, "cause", None) or error from error
            except self.ray.exceptions.RayError as error:  # the actor, its node or the answer is lost
                self._lost(actor, shard, error)
                continue
            idle.append(actor)
            if shard is not None:
                yield shard, found

    def _start(self) -> None:
        actor = self.worker.remote(self.scorer)
        self.doing[actor.ready.remote()] = actor, None

    def _lost(self, actor: Any, shard: Shard | None, error: Exception) -> None:
        self.ray.kill(actor)
        if shard is not None:
            self.again.append(shard)
            self.deaths[shard.number] = self.deaths.get(shard.number, 0) + 1
            if self.deaths[shard.number] == MOST_DEATHS:
                raise ExecutionError(
                    f"{MOST_DEATHS} actors died with shard {shard.number}: {error}. Has each the memory that it needs?"
                ) from error
        self._start()


def import_ray() -> Any:
    """The package, which is optional.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise BackendUnavailableError(
            "--ray needs Ray. Install it with `pip install 'gptexport[ray]'`, here and on each node of the cluster."
        ) from None
    return ray
