"""Which changes of the code do no test notice? Each mutant is tried in a forked child, with the tests collected before.

    python -m scripts.mutants                             every mutant of every file in FILES
    python -m scripts.mutants --only judge --sample 100   a hundred of one file's, drawn by --seed
    python -m scripts.mutants --log FILE                  goes on where a run that was stopped had come to

    python -m scripts.mutants --log FILE --again          tries its survivors anew, with more tests

Tests that reach the changed line come first, then those of the same function, and those that fork, whose children are
not watched; `--again` runs the others too, as what a test needs may be made by the one before. Prints the survivors, as
`file:line: before -> after`. docs/reliability.md has those that are known, with why they do not matter.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

from scripts.mutants.mutate import Mutant, mutants_of
from scripts.mutants.suite import Suite, with_suite

VERDICT = (
    "tests/parity/measure/test_metrics.py",
    "tests/parity/verdict/test_judge.py",
    "tests/parity/verdict/test_statistics.py",
)
STAGING = tuple(f"tests/staging/test_{name}.py" for name in ("bundle", "files", "pair", "stage"))
FILES: dict[str, tuple[str, ...]] = {
    "gptexport/parity/measure/metrics.py": VERDICT,
    "gptexport/parity/verdict/judge.py": VERDICT,
    "gptexport/parity/verdict/statistics.py": VERDICT,
    "runtime/gptexport_runtime/inputs.py": ("tests/runtime/test_inputs.py",),
    "gptexport/staging/bundle.py": STAGING,
    "gptexport/staging/files.py": STAGING,
    "gptexport/staging/outputs.py": STAGING,
    "gptexport/staging/pair.py": STAGING,
    "gptexport/staging/stage.py": STAGING,
}
WIDER: dict[str, tuple[str, ...]] = {  # of which survivors are tried as well
    "gptexport/parity": (
        "tests/parity/verdict/test_certificate.py",
        "tests/parity/measure",
        "tests/parity/test_check.py",
    ),
    "gptexport/staging": ("tests/staging/test_stopped.py", "tests/export/test_outputs.py"),
    "runtime": ("tests/runtime/generate/test_stream.py", "tests/runtime/test_session.py"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of a file's name")
    parser.add_argument("--sample", type=int, help="so many of each file, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="where every outcome is written, and found again")
    parser.add_argument("--again", action="store_true", help="survivors in the log, with every test")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; --log goes on from there")
    asked = parser.parse_args()
    asked.until = time.monotonic() + 60 * asked.minutes
    known: dict[str, str] = {}
    if asked.log is not None and asked.log.exists():
        known = dict(json.loads(line) for line in asked.log.read_text(encoding="utf-8").splitlines())
    total: Counter[str] = Counter()
    for file, tests in FILES.items():
        mutants = [mutant for mutant in mutants_of(file) if asked.only in file]
        if asked.sample is not None and asked.sample < len(mutants):
            mutants = Random(asked.seed).sample(mutants, asked.sample)
        names = {f"{mutant.name} #{mutant.number}": mutant for mutant in sorted(mutants, key=lambda m: m.line)}
        left = [name for name in names if name not in known or (asked.again and known[name] == "survives")]
        if left and time.monotonic() < asked.until:
            work = partial(_try, mutants={name: names[name] for name in left}, known=known, asked=asked)
            wider = [test for part in WIDER if file.startswith(part) for test in WIDER[part] if asked.again]
            with_suite(file, [*tests, *wider], work)
        for name in names:
            if known.get(name, "killed") != "killed":
                print(f"    {known[name]}: {name}")
        counts = Counter(known.get(name, "not run") for name in names)
        if mutants:
            print(f"{file}: {counts.total()} mutants, {dict(counts)}", flush=True)
        total += counts
    print(f"{total.total()} mutants, {dict(total)}")
    return 0


def _try(suite: Suite, mutants: dict[str, Mutant], known: dict[str, str], asked: argparse.Namespace) -> None:
    for name, mutant in mutants.items():
        if time.monotonic() > asked.until:
            return
        known[name] = suite.outcome(mutant, asked.again)
        if asked.log is not None:
            with asked.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps([name, known[name]]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
