"""Who scores which shard, and what is done when an actor dies; a real Ray is run by scripts.score_on_ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptexport.score import Asked, score_corpus
from gptexport.score.on_ray import MOST_DEATHS, Fleet
from gptexport.score.scorer import Scorer
from gptexport_runtime.errors import BackendUnavailableError, ExecutionError, InputError
from tests.support.files import files_of

Call = Callable[[], Any]


class RayError(Exception):
    """As Ray's: an actor, a node or an answer is lost."""


class RayTaskError(RayError):
    """As Ray's: what the actor raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Method:
    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def remote(self, *arguments: Any) -> Call:
        return lambda: self._run(*arguments)


class FakeRay(ModuleType):
    """Calls are made when their answer is fetched; `dies` says which of them find their actor dead."""

    def __init__(self, cpus: int, dies: Callable[[int], bool]) -> None:
        super().__init__("ray")
        self.cpus, self.dies = cpus, dies
        self.calls = self.started = self.killed = 0
        self.asked: dict[str, Any] = {}
        exceptions: Any = ModuleType("ray.exceptions")
        exceptions.RayError, exceptions.RayTaskError = RayError, RayTaskError
        self.exceptions = exceptions

    def init(self, address: str, **_: Any) -> None:
        if address == "nowhere":
            raise ConnectionError("nobody answers")

    def shutdown(self) -> None:
        self.asked["shutdown"] = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.asked |= options

        def decorate(kind: type) -> Any:
            def start(*arguments: Any) -> Any:
                self.started += 1
                worker: Any = kind(*arguments)
                made: Any = ModuleType("actor")
                made.ready, made.score = Method(worker.ready), Method(worker.score)
                return made

            found: Any = ModuleType("class")
            found.remote = start
            return found

        return decorate

    def wait(self, calls: Sequence[Call], num_returns: int) -> tuple[list[Call], list[Call]]:
        return [calls[-1]], [*calls[:-1]]  # the last first: answers come in any order

    def get(self, call: Call) -> Any:
        self.calls += 1
        if self.dies(self.calls):
            raise RayError("the actor died")
        try:
            return call()
        except Exception as error:
            raise RayTaskError(error) from error

    def kill(self, _actor: Any) -> None:
        self.killed += 1


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    def made(cpus: int = 3, dies: Callable[[int], bool] = lambda _: False) -> FakeRay:
        fake = FakeRay(cpus, dies)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
        return fake

    return made


@pytest.mark.parametrize(
    "dies", [lambda _: False, lambda n: n % 3 == 0, lambda n: n in (1, 2, 5, 6)], ids=["none", "some", "many"]
)
def test_the_files_are_those_of_one_machine(
    asked: Asked,
    start: Callable[..., FakeRay],
    dies: Callable[[int], bool],
    tmp_path: Path,
) -> None:
    score_corpus(asked, None)
    fake = start(dies=dies)
    fleet = replace(asked, out=tmp_path / "fleet")
    score_corpus(fleet, None, run=Fleet(gpus=0.5))
    assert files_of(fleet.out) == files_of(asked.out)
    assert fake.started == 3 + fake.killed and fake.asked["num_cpus"] == 1 and fake.asked["num_gpus"] == 0.5
    assert fake.killed == sum(map(dies, range(1, fake.calls + 1))) and fake.asked["shutdown"]


def test_a_shard_that_kills_every_actor_ends_it(asked: Asked, start: Callable[..., FakeRay]) -> None:
    fake = start(cpus=1, dies=lambda n: n % 2 == 0)  # each actor starts, and dies of its first shard
    with pytest.raises(ExecutionError, match=f"{MOST_DEATHS} actors died with shard 0"):
        score_corpus(asked, None, run=Fleet())
    assert fake.killed == MOST_DEATHS


def test_what_an_actor_raises_is_raised_here(
    asked: Asked,
    start: Callable[..., FakeRay],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start()

    def fails(*_: Any) -> Any:
        raise InputError("ids is wrong.")

    monkeypatch.setattr(Scorer, "__call__", fails)
    with pytest.raises(InputError, match=r"ids is wrong\."):
        score_corpus(asked, None, run=Fleet(workers=2))


def test_a_cluster_that_does_not_answer(asked: Asked, start: Callable[..., FakeRay]) -> None:
    start()
    with pytest.raises(BackendUnavailableError, match="Ray at nowhere cannot be reached: nobody answers"):
        score_corpus(asked, None, run=Fleet(address="nowhere"))


def test_ray_is_optional(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match="pip install 'gptexport\\[ray\\]'"):
        score_corpus(asked, None, run=Fleet())
