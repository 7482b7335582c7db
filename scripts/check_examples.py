"""The examples in other languages, beside a session: the same logits, and the same greedy text.

    npm ci --ignore-scripts --prefix scripts/examples/javascript
    .venv/bin/python -m scripts.check_examples --include ORT/include --out docs/measurements/examples [CHECKPOINT ...]

Small models of random weights, by transformers, and the checkpoints that are named; each for the targets portable and
cpu, and in float16. 50 prompts of 1 to 20 ids, in batches of 1 to 4 rows of one length, 20 new ids each. Where a text
parts from the session's, it is a tie if eager's logits of the two ids are nearer than 1e-4 of their RMS (in float16,
1e-2). JavaScript runs where there are Node.js and the packages; C where there are a compiler and, in --include or
$ORT_INCLUDE, ONNX Runtime's headers. Its library is that of the Python package. Exit code 1: a text parts elsewhere,
or logits differ by more than rounding.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import load
from scripts.bench.tables import options, table, write
from scripts.bench.workers import versions
from scripts.check_gguf import MODELS, make

EXAMPLES = Path(__file__).with_name("examples")
HEADER = "onnxruntime_c_api.h"
PROMPTS, NEW, LONGEST = 50, 20, 20
EXPORTS: dict[str, dict[str, Any]] = {"portable": {}, "cpu": {"target": "cpu"}, "float16": {"dtype": "float16"}}
TIES = {"portable": 1e-4, "cpu": 1e-4, "float16": 1e-2}
LIMIT = 1e-5  # of logits: two versions of ONNX Runtime round differently
Rows = list[list[int]]


class MissingError(Exception):
    """What an example needs is not on this machine."""


@dataclass(frozen=True)
class Example:
    """A program that computes logits, and continues texts."""

    command: Sequence[str]

    def logits(self, bundle: Path, rows: Rows) -> np.ndarray:
        """(B,T) ids -> (B,T,V)."""
        said = self._run(str(bundle), "logits", *_arguments(rows))
        return np.array([line.split(",") for line in said], np.float32).reshape(len(rows), len(rows[0]), -1)

    def generate(self, bundle: Path, rows: Rows, count: int) -> Rows:
        """`count` ids for each row."""
        said = self._run(str(bundle), "generate", str(count), *_arguments(rows))
        return [[int(i) for i in line.split(",")] for line in said]

    def _run(self, *arguments: str) -> list[str]:
        return subprocess.run([*self.command, *arguments], check=True, capture_output=True, text=True).stdout.split()


def _arguments(rows: Rows) -> list[str]:
    return [",".join(map(str, row)) for row in rows]


def javascript() -> Example:
    """Raises: MissingError."""
    node, folder = shutil.which("node"), EXAMPLES / "javascript"
    if node is None:
        raise MissingError("there is no Node.js")
    if not (folder / "node_modules" / "onnxruntime-node").is_dir():
        raise MissingError("run `npm ci --ignore-scripts --prefix scripts/examples/javascript`")
    return Example([node, str(folder / "bundle.js")])


def c(include: str | None, folder: Path) -> Example:
    """Compile it into `folder`.

    Raises:
        MissingError: the compiler, or the header.
        CalledProcessError: it does not compile.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingError("there is no C compiler")
    if include is None or not (Path(include) / HEADER).is_file():
        raise MissingError(f"{include or '$ORT_INCLUDE'} has no {HEADER}, which Python's package does not have")
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.1.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # for the linker, and for the program
        (folder / name).symlink_to(library)
    program = folder / "bundle"
    source = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-isystem", include, str(EXAMPLES / "c" / "bundle.c")]
    linked = ["-o", str(program), f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]
    subprocess.run([compiler, *source, *linked], check=True)
    return Example([str(program)])


def main() -> int:
    torch.set_num_threads(1)
    parser = options(__doc__, writes="OUT.md and OUT.json", rounds=1)
    parser.add_argument("--include", default=os.environ.get("ORT_INCLUDE"), help=f"the folder of {HEADER}")
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT")
    args = parser.parse_args()
    rows: list[list[str]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        examples = _examples(args.include, Path(temporary))
        named = {name: make(*MODELS[name], Path(temporary) / name) for name in ("GPT-2", "Llama")}
        for name, loaded in (named | {path: load_checkpoint(path) for path in args.checkpoints}).items():
            for kind, asked in EXPORTS.items():
                bundle = Path(temporary) / f"{len(rows)}"
                export_onnx(loaded, bundle, **asked)
                for language, example in examples.items():
                    error, same, ties, other = compare(loaded, bundle, example, TIES[kind])
                    rows.append([name, kind, language, f"{error:.1e}", f"{same}", f"{ties}", f"{other}"])
                    wrong += [f"{language} with {name}, {kind}"] * (other > 0 or not error <= LIMIT)
    node = EXAMPLES / "javascript" / "package.json"
    of = ", ".join(f"{package} {version}" for package, version in versions(("gptexport", "onnxruntime")).items())
    lines = ["# The examples in other languages", "", f"By `scripts/check_examples.py`: {of}; onnxruntime-node as in"]
    lines += [f"`{node.relative_to(EXAMPLES.parents[1])}`. Weights are random where no checkpoint is named.", ""]
    header = ["model", "export", "language", "logits differ by", f"the session's text, of {PROMPTS}", "part at a tie"]
    write(args.out, [*lines, *table([*header, "part elsewhere"], rows)], {"rows": rows})
    for each in wrong:
        print(f"WRONG: {each}", file=sys.stderr)
    return int(bool(wrong))


def _examples(include: str | None, folder: Path) -> dict[str, Example]:
    """Those that can run here; what the others miss is said."""
    found = {}
    languages: dict[str, Callable[[], Example]] = {"JavaScript": javascript, "C": lambda: c(include, folder)}
    for language, made in languages.items():
        try:
            found[language] = made()
        except MissingError as error:
            print(f"{language} is not run: {error}.", file=sys.stderr)
    return found


def compare(loaded: Checkpoint, bundle: Path, example: Example, tie: float) -> tuple[float, int, int, int]:
    """The largest relative RMS of logits; texts that are the session's, that part at a tie, and elsewhere."""
    draw = np.random.default_rng(0)
    error, same, ties, other, done = 0.0, 0, 0, 0, 0
    with load(bundle, "cpu") as session:
        while done < PROMPTS:
            shape = (min(1 + done % 4, PROMPTS - done), int(draw.integers(1, LONGEST + 1)))
            rows = draw.integers(0, loaded.vocab_size, shape).tolist()
            done += len(rows)
            expected, got = session.logits(rows), example.logits(bundle, rows)
            error = max(error, float(np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())))
            count = min(NEW, loaded.block_size - shape[1])
            texts = session.generate(rows, max_new_tokens=count, temperature=0)
            for row, text, new in zip(rows, texts, example.generate(bundle, rows, count), strict=True):
                ours = [int(i) for i in text]
                if new[: len(ours)] == ours and (len(ours) == count or new[len(ours)] in loaded.text.eos_token_ids):
                    same += 1
                elif is_tie(loaded, row, ours, new, tie):
                    ties += 1
                else:
                    other += 1
    return error, same, ties, other


def is_tie(loaded: Checkpoint, prompt: list[int], ours: list[int], theirs: list[int], tie: float) -> bool:
    """Whether eager's logits of the two ids where the texts part are nearer than `tie` of their RMS."""
    at = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if at is None:
        return False
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompt + ours[:at]]))[0, -1].numpy()
    return bool(abs(logits[ours[at]] - logits[theirs[at]]) < tie * np.sqrt(np.square(logits).mean()))


if __name__ == "__main__":
    sys.exit(main())
