"""The bounded form of the campaigns in scripts/fuzz, seeded: the long ones are run by hand (docs/reliability.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from gptexport.checkpoints.formats import huggingface_neox
from gptexport.checkpoints.formats.huggingface_llama_config import MODEL_TYPES
from gptexport.checkpoints.formats.huggingface_text import TOKENIZER_FILES
from gptexport.checkpoints.readers import CONTAINERS, PAYLOADS
from gptexport_runtime import BackendUnavailableError
from scripts.fuzz import commands, kill, load
from scripts.fuzz.files import Worker, campaign
from scripts.fuzz.readers import READERS, Reader
from scripts.fuzz.templates import templates


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    templates(folder / "templates")
    return folder


def test_every_format_has_a_fuzzer() -> None:
    covered = {name for reader in READERS for name in reader.covers}
    formats = {*CONTAINERS, *PAYLOADS, *MODEL_TYPES, huggingface_neox.MODEL_TYPE}
    tokenizers = {*TOKENIZER_FILES} - {"spiece.model", "sentencepiece.bpe.model"}  # a tokenizer.model by other names
    assert formats | tokenizers <= covered


@pytest.mark.slow
def test_a_fuzzer_begins_with_what_it_is_said_to_read(root: Path, tmp_path: Path) -> None:
    worker = Worker(root, (1, None), 0)
    for reader in READERS:
        for read in reader.reads:
            _read_or_refused(read, worker.prepare(reader))


def _read_or_refused(read: Callable[[Path], None], place: Path) -> None:
    """What is valid is read, but where what reads it is not installed."""
    try:
        read(place)
    except BackendUnavailableError as error:
        assert "sentencepiece" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_refuses_what_it_cannot_read(
    root: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = Worker(root, (1, reader.name), 0)
    for number in range(20):
        assert worker.run(number) in ("read", "refused")


@pytest.mark.slow
def test_a_campaign_watches_processes_of_its_own(root: Path) -> None:
    counts, failures = campaign(root, (1, "manifest"), range(30), workers=1)
    assert (sum(counts.values()), failures) == (30, [])


def test_outputs_outlive_kills_at_random_moments(tmp_path: Path) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    random = Random(2)
    failures: list[str] = []
    for number in range(36):
        place = tmp_path / str(number)
        place.mkdir()
        failures += kill.killed_small(random, kill.SMALL[number % len(kill.SMALL)], place, counts)
    assert failures == []
    assert sum(count for (_, outcome), count in counts.items() if outcome == "killed") > 5


@pytest.mark.slow
@pytest.mark.parametrize("command", commands.COMMANDS[:4], ids=lambda command: command.name)
def test_commands_outlive_kills(command: commands.Command, tmp_path: Path) -> None:
    of = commands.Campaign(tmp_path, 1)
    of.prepare(command)
    for _ in range(3):
        of.killed_at_random(command)
    for step in range(0, of.steps[command], 5):
        of.killed_before_step(command, step)
    assert of.failures == []


@pytest.mark.slow
@pytest.mark.parametrize(("work", "count"), [(load.replaced, 40), (load.threads, 50), (load.soak, 700)])
def test_a_session_is_pushed(work: Callable[[Path, int, int], list[str]], count: int, tmp_path: Path) -> None:
    assert work(tmp_path, count, 1) == []
