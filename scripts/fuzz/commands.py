"""Commands as users run them, killed or on a full disk, and what is there afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random

import numpy as np

from gptexport.cli.app import run
from gptexport.staging import watched
from gptexport_runtime import GPTExportError, load
from gptexport_runtime.artifact import is_engine, is_graph
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.engine_file import read_engine_info
from tests.support.builders import tiny_nanogpt

IDS = [[1, 2, 3, 4, 5, 6, 7]]
ABSENT, OLD, NEW = "absent", "old", "new"
STRANGER = "notes.txt"  # of the user's, in a folder that is replaced
PATIENCE = 300  # seconds, of a run that nobody kills


@dataclass(frozen=True)
class Command:
    """`arguments` write `out`; where `over` is given, in place of what these wrote."""

    arguments: tuple[str, ...]
    out: str
    over: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return " ".join(word for word in self.arguments if word not in ("../new.pt", "-o"))


ONNX = ("onnx", "../new.pt", "-o")
INT8 = ("--target", "cpu", "--quantize", "int8")
TRT = ("trt", "../new", "-o", "gpt.engine", "--backend", "tensorrt-rtx", "--compute-capability", "8.9")
PARITY = ("parity", "gpt", "--against", "../old.pt", "--shapes", "1x8")
COMMANDS = (
    Command((*ONNX, "gpt"), "gpt"),
    Command((*ONNX, "gpt", "--force"), "gpt", ("onnx", "../old.pt", "-o", "gpt")),
    Command((*ONNX, "gpt.onnx"), "gpt.onnx"),
    Command((*ONNX, "gpt.onnx", "--force"), "gpt.onnx", ("onnx", "../old.pt", "-o", "gpt.onnx")),
    Command((*ONNX, "gpt", *INT8, "--force"), "gpt", ("onnx", "../old.pt", "-o", "gpt")),
    Command(TRT, "gpt.engine"),
    Command((*TRT, "--force"), "gpt.engine", tuple("../old" if word == "../new" else word for word in TRT)),
    Command(PARITY, "gpt", ("onnx", "../old.pt", "-o", "gpt")),
)


class Campaign:
    """Templates, and what came of every run."""

    def __init__(self, root: Path, seed: int) -> None:
        import torch

        from gptexport.export import layout

        torch.set_num_threads(1)  # OpenMP's threads are not in a forked child
        layout.INLINE_BYTES = 1000  # so that a lone graph has data beside it
        self.root, self.random = root, Random(seed)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []
        for number, name in enumerate((OLD, NEW)):
            tiny_nanogpt(root / f"{name}.pt", n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=50, seed=number)
        self.steps: dict[Command, int] = {}
        self.seconds: dict[Command, float] = {}
        self.processes: dict[Command, tuple[float, float]] = {}  # seconds until one writes, and until it ends
        self.known: dict[tuple[str, str], object] = {}
        self.prepared = False

    def _import_all(self) -> None:
        """What commands import when they first need it, so that a fork has it."""
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            for arguments in (["onnx", str(self.root / "old.pt"), "-o", folder], ["parity", folder, *PARITY[2:]]):
                run([word.replace("../", f"{self.root}/") for word in arguments])

    def prepare(self, command: Command) -> None:
        """Write the old output and the new one, to know them, and see what a whole run takes."""
        if not self.prepared:
            self._import_all()
            self.prepared = True
        if command.arguments[0] == "trt":
            for name in (OLD, NEW):
                if not (self.root / name).is_dir():
                    self._whole(["onnx", f"{name}.pt", "-o", name, "--dtype", "bfloat16"], self.root)
        place = self.place(command)
        self.known[command.name, OLD] = _identity(place / command.out)
        start, steps = time.monotonic(), self.root / "steps"
        code = self._end(self._fork(list(command.arguments), place, lambda: steps.open("ab").write(b".")))
        assert code == 0, f"{command.name}: exit code {code}"
        self.seconds[command], self.steps[command] = time.monotonic() - start, steps.stat().st_size
        steps.unlink()
        self.known[command.name, NEW] = _identity(place / command.out)
        assert self.known[command.name, NEW] != self.known[command.name, OLD]
        shutil.rmtree(place)

    def place(self, command: Command, within: Path | None = None) -> Path:
        """A folder with what the command replaces."""
        place = Path(tempfile.mkdtemp(dir=within or self.root, prefix="place"))
        if command.over is not None:
            saved = self.root / f"before {command.name.replace('/', ' ')}"
            if not saved.is_dir():
                saved.mkdir()
                self._whole(list(command.over), saved)
                if (saved / command.out).is_dir():
                    (saved / command.out / STRANGER).write_text("mine")
            shutil.copytree(saved, place, dirs_exist_ok=True)
        return place

    def killed_at_random(self, command: Command) -> None:
        """By the clock, or soon after a step that was drawn."""
        place = self.place(command)
        if self.random.random() < 0.5:
            child = self._fork(list(command.arguments), place)
            time.sleep(self.random.uniform(0, 1.05 * self.seconds[command]))
        else:
            reading, writing = os.pipe()
            child = self._fork(list(command.arguments), place, lambda: os.write(writing, b"."))
            os.close(writing)
            waiting = self.random.randrange(1, self.steps[command] + 1)
            while waiting > 0 and (got := os.read(reading, waiting)):
                waiting -= len(got)
            os.close(reading)
            time.sleep(self.random.expovariate(1000))
        os.kill(child, signal.SIGKILL)
        self._check(command, place, self._end(child))

    def killed_process(self, command: Command) -> None:
        """A process of its own, as a user's shell starts it: at any moment, or once it has begun to write."""
        place = self.place(command)
        line = [sys.executable, "-m", "gptexport", *command.arguments]
        quiet, here = subprocess.DEVNULL, os.pathsep.join([str(Path.cwd()), *sys.path])
        before, start = _names(place), time.monotonic()
        child = subprocess.Popen(line, cwd=place, stdout=quiet, stderr=quiet, env={**os.environ, "PYTHONPATH": here})
        if command not in self.processes:  # the first one shows how long it takes
            while _names(place) == before and child.poll() is None:
                time.sleep(0.002)
            writes = time.monotonic() - start
            code = child.wait(PATIENCE)
            self.processes[command] = writes, time.monotonic() - start
        else:
            writes, ends = self.processes[command]
            if self.random.random() < 0.5:
                time.sleep(self.random.uniform(0, ends))
            else:
                while _names(place) == before and child.poll() is None:
                    time.sleep(0.002)
                time.sleep(self.random.uniform(0, ends - writes))
            child.kill()
            code = child.wait()
            if code == 0:  # sooner than was thought
                self.processes[command] = writes, max(writes, 0.9 * ends)
        self._check(command, place, code)

    def killed_before_step(self, command: Command, step: int) -> None:
        """By itself, exactly there."""
        place, count = self.place(command), [0]

        def watch() -> None:
            count[0] += 1
            if count[0] == step + 1:
                os.kill(os.getpid(), signal.SIGKILL)

        self._check(command, place, self._end(self._fork(list(command.arguments), place, watch)))

    def full_disk(self, command: Command) -> None:
        """A filesystem of its own, with room for a part of what the command writes."""
        disk = Path(tempfile.mkdtemp(dir=self.root, prefix="disk"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
        try:
            place = self.place(command, disk)
            for name in (f"{OLD}.pt", f"{NEW}.pt", OLD, NEW):
                if (self.root / name).exists():
                    (disk / name).symlink_to(self.root / name)
            used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True).stdout.split()[0])
            size = used + self.random.randrange(1, 220)
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            code = self._end(self._fork(list(command.arguments), place))
            left = left_in(place)
            if left and code:
                self._failed(command, f"a full disk left {', '.join(left)}")
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            self._check(command, place, code)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def _check(self, command: Command, place: Path, code: int) -> None:
        """The old one or the new one, or none where there was none; and then a run to the end."""
        out = place / command.out
        outcome = self._outcome(command, out)
        self.counts[command.name, outcome if outcome in (ABSENT, OLD, NEW) else "torn"] += 1
        self.counts[command.name, "killed" if code == -signal.SIGKILL else f"exit code {code}"] += 1
        self.counts[command.name, "left something"] += bool(left_in(place))
        if outcome not in (OLD, NEW, *([] if command.over else [ABSENT])):
            self._failed(command, f"it is {outcome}")
        force = ["--force"] if outcome != ABSENT and command.arguments[0] != "parity" else []
        words = [word for word in command.arguments if word != "--force"]
        again = self._end(self._fork([*words, *force], place))
        after = self._outcome(command, out)
        if (again, after) != (0, NEW):
            self._failed(command, f"after {outcome} the next run ends with {again} and it is {after}")
        if left := left_in(place):
            self._failed(command, f"after the next run there is {', '.join(left)}")
        if command.over and out.is_dir() and not (out / STRANGER).is_file():
            self._failed(command, "a stranger's file is gone")
        shutil.rmtree(place, ignore_errors=True)

    def _outcome(self, command: Command, out: Path) -> str:
        found = _identity(out)
        for name in (OLD, NEW) if found != ABSENT else ():
            if found == self.known[command.name, name]:
                return name
        return str(found)

    def _failed(self, command: Command, what: str) -> None:
        self.failures.append(f"{command.name}: {what}")

    def _whole(self, arguments: list[str], place: Path) -> None:
        code = self._end(self._fork(arguments, place))
        assert code == 0, f"{arguments}: exit code {code}"

    def _fork(self, arguments: list[str], place: Path, each_step: Callable[[], object] = lambda: None) -> int:
        child = os.fork()
        if child:
            return child
        try:
            os.chdir(place)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            with watched(lambda _step, _path: ignored(each_step())):
                code = run(arguments)
        except BaseException:
            os._exit(99)
        os._exit(code)

    def _end(self, child: int) -> int:
        until = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                self.failures.append(f"a run did not end in {PATIENCE} s")
            time.sleep(0.005)


def ignored(_: object) -> None:
    """What a watch returns is nobody's."""


def _identity(out: Path) -> object:
    """What a reader finds: the numbers of the model, and whether parity was proved; of an engine what it is made of."""
    try:
        if is_engine(out):
            return tuple(read_engine_info(out).onnx.items()) if out.exists() else ABSENT
        if not (out if is_graph(out) else out / MANIFEST_FILE).exists():
            return ABSENT
        with load(out, "cpu", threads=1, verify=True) as session:
            proved = session.manifest is not None and session.manifest.parity is not None
            numbers = [session.logits(IDS).tobytes(), np.asarray(session.generate(IDS, max_new_tokens=3)).tobytes()]
            return (proved, *numbers) if is_graph(out) is False else (proved, numbers[0])
    except GPTExportError as error:
        return f"torn: {error}"


def _names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def left_in(place: Path) -> list[str]:
    """Whatever a run has left that is no output."""
    names = [str(path.relative_to(place)) for path in place.rglob("*")]
    return [name for name in names if ".gptexport-" in name or name.endswith((".tmp", ".old"))]
