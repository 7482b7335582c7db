"""Mutated files for every reader, in worker processes that are watched: a crash, 10 s of work or 2 GiB end one.

    python -m scripts.fuzz.files --seed 1 --count 100000 --workers 2
    python -m scripts.fuzz.files --seed 1 --only 4711            one input again, with its traceback
    python -m scripts.fuzz.files --seed 1 --reader manifest --count 1000

Exit code 1 if anything but "read" or "refused" came out. What failed is kept in --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from ctypes import c_double, c_longlong
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TextIO

from gptexport_runtime import BackendUnavailableError, GPTExportError
from gptexport_runtime.contract.names import MANIFEST_FILE
from scripts.fuzz.readers import READERS, Foreign, Reader, reader_of, rehash
from scripts.fuzz.templates import templates

SECONDS, MEMORY = 10.0, 2 << 30
ASLEEP = 60.0  # seconds, of a process that waits for something
ROOT = Path(__file__).parents[2]
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # most of an input's time is its disk's elsewhere
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")

Job = tuple[int, str | None]  # the seed, and the one reader asked for
if TYPE_CHECKING:
    Number = Synchronized[int]  # shared between processes
    Seconds = Synchronized[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="go on from this input")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--reader", choices=[reader.name for reader in READERS])
    parser.add_argument("--only", type=int, help="this input alone, in this process")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that failed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptexport-fuzz-", dir=IN_MEMORY) as folder:
        root = Path(folder)
        templates(root / "templates")
        job = (asked.seed, asked.reader)
        if asked.only is not None:
            one = Worker(root, job, 0)
            reader = one.reader(asked.only)
            print(f"{reader.name}: {one.run(asked.only)}")
            shutil.copytree(one.place(reader), asked.keep / str(asked.only)) if asked.keep else None
            return 0
        numbers = range(asked.first, asked.first + asked.count)
        counts, failures = campaign(root, job, numbers, asked.workers, asked.keep)
    report(counts, failures)
    return 1 if failures else 0


def campaign(
    root: Path, job: Job, numbers: range, workers: int, keep: Path | None = None
) -> tuple[Counter[tuple[str, str]], list[dict[str, str]]]:
    """Every number is an input. Returns: how often each reader did what, and everything that failed."""
    watched = [Watched(root, job, numbers[place::workers], place) for place in range(workers)]
    while [one for one in watched if one.look()]:
        time.sleep(0.2)
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, str]] = []
    for one in watched:
        for line in one.lines():
            counts[line["reader"], line["outcome"]] += int(line.get("count", 1))
            if line["outcome"] not in ("read", "refused"):
                failures.append(line)
                if keep is not None and Path(line["kept"]).is_dir():
                    shutil.copytree(line["kept"], keep / line["number"], dirs_exist_ok=True)
    return counts, failures


def report(counts: Counter[tuple[str, str]], failures: list[dict[str, str]]) -> None:
    outcomes = sorted({outcome for _, outcome in counts}, key=lambda o: (o not in ("read", "refused"), o))
    print("| reader | " + " | ".join(outcomes) + " |\n|---|" + "--:|" * len(outcomes))
    for reader in READERS:
        print(f"| {reader.name} | " + " | ".join(f"{counts[reader.name, o]:,}" for o in outcomes) + " |")
    print("| **all** | " + " | ".join(f"{sum(counts[r.name, o] for r in READERS):,}" for o in outcomes) + " |")
    places = Counter((line["outcome"], line["where"]) for line in failures)
    for (outcome, where), count in places.most_common():
        example = next(line for line in failures if (line["outcome"], line["where"]) == (outcome, where))
        print(f"\n{count} × {outcome}: {where}\n    as in {example['number']}, {example['reader']}: {example['what']}")


class Worker:
    """Makes inputs, and reads them; in a process of its own, but for one.

    Every reader has a folder of its own in which one file is written anew for each input, and again for the next.
    """

    def __init__(self, root: Path, job: Job, place: int) -> None:
        self.root, (self.seed, self.only) = root, job
        self.folder = root / f"worker-{place}"
        self.valid: dict[str, dict[str, bytes]] = {}  # of every reader, what its files hold, by their names
        self.changed: dict[Path, bytes] = {}  # what the last input changed, and what was there
        self.armed = False
        self.misdeeds: list[str] = []

    def reader(self, number: int) -> Reader:
        return reader_of(Random(f"{self.seed} {number}"), self.only)

    def place(self, reader: Reader) -> Path:
        """The folder that its inputs are in."""
        return self.folder / str(READERS.index(reader)) / "in"

    def prepare(self, reader: Reader) -> Path:
        """Its folder as it is valid."""
        place = self.place(reader)
        if reader.name not in self.valid:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(self.root / "templates" / reader.template, place)
            self.valid[reader.name] = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
        for path, data in self.changed.items():
            _write(path, data)
        self.changed.clear()
        return place

    def run(self, number: int) -> str:
        """The outcome of one input, left in its place; errors that are not gptexport's own come out."""
        random = Random(f"{self.seed} {number}")
        reader = reader_of(random, self.only)
        place = self.prepare(reader)
        os.chdir(place)
        name, mutation = random.choice(reader.files)
        valid = self.valid[reader.name]
        self.changed = {place / file: valid[file] for file in ((name, MANIFEST_FILE) if reader.rehash else (name,))}
        _write(place / name, mutation(valid[name], random))
        if reader.rehash:
            rehash(place, name)
        self.misdeeds.clear()
        try:
            self.armed = True
            random.choice(reader.reads)(place)
        except GPTExportError as error:
            str(error).encode("utf-8", "surrogatepass")
            return "refused"
        finally:
            self.armed = False
            self._look_round(place, valid)
        return "read"

    def _look_round(self, place: Path, valid: Mapping[str, bytes]) -> None:
        """Readers write nothing."""
        for entry in os.scandir(place):
            if entry.is_file() and entry.name not in valid:
                self.misdeeds.append(f"wrote {entry.name}")
                Path(entry).unlink()

    def watch_itself(self) -> None:
        """Notice what runs code, and files that are opened elsewhere."""
        allowed = tuple(map(str, (self.root, ROOT, sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev/null", "/usr")))

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if not self.armed:
                return
            if event in RUNS_CODE:
                self.misdeeds.append(f"ran code: {event} {arguments!r:.200}")
            elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
                opened = os.path.realpath(os.fsdecode(arguments[0]))
                if not opened.startswith(allowed):
                    self.misdeeds.append(f"opened {opened}")

        sys.addaudithook(hook)


def _write(path: Path, data: bytes) -> None:
    """A new file: of the old one weights may be mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _work(root: Path, job: Job, numbers: range, place: int, log: Path, at: Number, since: Seconds) -> None:
    """A worker process: from the number that `at` says to the last."""
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    torch.set_num_threads(1)
    worker = Worker(root, job, place)
    for reader in READERS:  # whatever is imported when first used
        for read in reader.reads:
            with contextlib.suppress(BackendUnavailableError):  # what reads it is not installed
                read(worker.prepare(reader))
    worker.watch_itself()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with log.open("a", buffering=1) as out:
        while at.value < len(numbers):
            number = numbers[at.value]
            since.value = time.monotonic()
            outcome, where, what = _outcome(worker, number)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > max(MEMORY, start * 2):
                outcome, what = "memory", "more than 2 GiB"
            _log(out, worker, number, outcome, where, what)
            at.value += 1
            if outcome == "memory":
                return
    since.value = 0.0


def _outcome(worker: Worker, number: int) -> tuple[str, str, str]:
    try:
        outcome = worker.run(number)
    except Foreign as error:
        return "foreign", str(error).partition("\n")[0][:100], str(error)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "gptexport" in frame.filename]
        place = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        name = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno} {place.name}"
        return "foreign", name, f"{error!r:.300}"
    if worker.misdeeds:
        return "misdeed", worker.misdeeds[0], ""
    return outcome, "", ""


def _log(out: TextIO, worker: Worker, number: int, outcome: str, where: str, what: str) -> None:
    reader = worker.reader(number)
    line = {"number": str(number), "reader": reader.name, "outcome": outcome}
    if outcome not in ("read", "refused"):
        kept = worker.folder / f"kept-{number}"
        shutil.copytree(worker.place(reader), kept, dirs_exist_ok=True)
        line |= {"where": where, "what": what, "kept": str(kept)}
    print(json.dumps(line), file=out)


def _work_of(pid: int | None) -> tuple[float, bool]:
    """Seconds of the CPU that a process has had, and whether it waits for something else than the CPU."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, or this is not Linux, where the clock has to do
        return time.monotonic(), True
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] == "S"


class Watched:
    """A worker's process, started anew where it ended too early."""

    def __init__(self, root: Path, job: Job, numbers: range, place: int) -> None:
        self.worker, self.numbers, self.place = Worker(root, job, place), numbers, place
        self.log = root / f"worker-{place}.jsonl"
        self.log.touch()
        self.context = multiprocessing.get_context("spawn")
        self.at: Number = self.context.Value(c_longlong, 0)
        self.since: Seconds = self.context.Value(c_double, 0.0)
        self.job, self.root = job, root
        self.worked = (0, 0.0)  # at which input, and how much its process had worked by then
        self.start()

    def start(self) -> None:
        self.since.value = time.monotonic() + 120  # what is imported takes its time
        arguments = (self.root, self.job, self.numbers, self.place, self.log, self.at, self.since)
        self.process = self.context.Process(target=_work, args=arguments)
        self.process.start()

    def look(self) -> bool:
        """Is there still something to do?"""
        if self.at.value >= len(self.numbers):
            self.process.join(10)
            return False
        if not self.process.is_alive():
            if self.process.exitcode:
                self._failed("crash", f"exit code {self.process.exitcode}")
            self.start()
        elif self._hangs():
            self.process.kill()
            self.process.join()
            self._failed("hang", f"more than {SECONDS:.0f} s")
            self.start()
        return True

    def _hangs(self) -> bool:
        """By its own work, not by the clock: the machine may have others."""
        waited = time.monotonic() - self.since.value
        worked, asleep = _work_of(self.process.pid)
        if waited < SECONDS or self.worked[0] != self.at.value:
            self.worked = (self.at.value, worked)
            return False
        return worked - self.worked[1] > SECONDS or (asleep and waited > ASLEEP)

    def _failed(self, outcome: str, what: str) -> None:
        number = self.numbers[self.at.value]
        with self.log.open("a") as out:
            _log(out, self.worker, number, outcome, self.worker.reader(number).name, what)
        self.at.value += 1

    def lines(self) -> Iterator[dict[str, str]]:
        with self.log.open() as file:
            yield from map(json.loads, file)


if __name__ == "__main__":
    sys.exit(main())
