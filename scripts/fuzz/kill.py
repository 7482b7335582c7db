"""Commands that are killed, or find the disk full: the old output or the new one is there, and the next run works.

    python -m scripts.fuzz.kill --seed 1 --kills 900 --processes 100    at random moments, in forks and in new processes
    python -m scripts.fuzz.kill --small 5000                            what commands do at their end, of a few bytes
    python -m scripts.fuzz.kill --every-step                            before every step that changes the disk
    python -m scripts.fuzz.kill --disks 100                             full disks of random sizes: tmpfs, needs root

Exit code 1 if anything was lost, torn or left behind. Children are forked with everything imported, and set on their
way a thousand times; `--processes` are started anew, as a user does it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

from gptexport.staging import watched
from scripts.fuzz.commands import COMMANDS, NEW, OLD, Campaign, ignored, left_in
from tests.support.outputs import BUNDLE, ENGINE, GRAPH, INLINE, TEXT, Kind, steps_of

SMALL = ((BUNDLE, BUNDLE), (GRAPH, GRAPH), (GRAPH, INLINE), (INLINE, GRAPH), (ENGINE, ENGINE), (TEXT, TEXT))


def killed_small(random: Random, kinds: tuple[Kind, Kind], place: Path, counts: Counter[tuple[str, str]]) -> list[str]:
    """What commands do at their end, with an output of a few bytes, killed at a random moment; then once more."""
    old, new = kinds
    name, out = f"small: {old.write.__name__[6:]} by {new.write.__name__[6:]}", place / new.name
    old.write(place / old.name, OLD, False)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with watched(lambda _step, _path: ignored(os.write(writing, b"."))):
            new.write(out, NEW, True)
        os._exit(0)
    os.close(writing)
    waiting = random.randrange(1, _steps(kinds))
    while waiting > 0 and (got := os.read(reading, waiting)):
        waiting -= len(got)
    os.close(reading)
    time.sleep(random.expovariate(3000))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    outcome = new.read(out)
    counts[name, outcome if outcome in (OLD, NEW) else "torn"] += 1
    counts[name, "killed" if os.WIFSIGNALED(status) else "exit code 0"] += 1
    counts[name, "left something"] += bool(left_in(place))
    new.write(out, "newer", True)
    wrong = [] if outcome in (OLD, NEW) else [f"{name}: it is {outcome}"]
    if new.read(out) != "newer" or left_in(place):
        wrong.append(f"{name}: after the next run it is {new.read(out)}, and there is {', '.join(left_in(place))}")
    return wrong


@cache
def _steps(kinds: tuple[Kind, Kind]) -> int:
    """How many steps it takes to replace the one by the other."""
    with tempfile.TemporaryDirectory() as folder:
        kinds[0].write(Path(folder, kinds[0].name), OLD, False)
        return len(steps_of(lambda: kinds[1].write(Path(folder, kinds[1].name), NEW, True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--small", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--every-step", action="store_true")
    parser.add_argument("--disks", type=int, default=0)
    parser.add_argument("--only", choices=[command.arguments[0] for command in COMMANDS])
    asked = parser.parse_args()
    commands = [command for command in COMMANDS if asked.only in (None, command.arguments[0])]
    with tempfile.TemporaryDirectory(prefix="gptexport-kill-") as folder:
        campaign = Campaign(Path(folder), asked.seed)
        for number in range(asked.small):
            place = Path(tempfile.mkdtemp(dir=folder))
            campaign.failures += killed_small(campaign.random, SMALL[number % len(SMALL)], place, campaign.counts)
            shutil.rmtree(place)
        for command in commands if asked.kills or asked.processes or asked.disks or asked.every_step else ():
            campaign.prepare(command)
        for command in commands if asked.every_step else ():
            for step in range(campaign.steps[command]):
                campaign.killed_before_step(command, step)
        for work, count in (
            (campaign.killed_at_random, asked.kills),
            (campaign.killed_process, asked.processes),
            (campaign.full_disk, asked.disks),
        ):
            for number in range(count):
                work(commands[number % len(commands)])
    report(campaign)
    return 1 if campaign.failures else 0


def report(campaign: Campaign) -> None:
    outcomes = list(dict.fromkeys(outcome for _, outcome in campaign.counts))
    print("| command | " + " | ".join(outcomes) + " |\n|---|" + "--:|" * len(outcomes))
    for name in dict.fromkeys(name for name, _ in campaign.counts):
        print(f"| {name} | " + " | ".join(str(campaign.counts[name, outcome]) for outcome in outcomes) + " |")
    totals = [sum(count for (_, found), count in campaign.counts.items() if found == outcome) for outcome in outcomes]
    print("| **all** | " + " | ".join(map(str, totals)) + " |")
    for what, count in Counter(campaign.failures).most_common():
        print(f"{count} × {what}")
    print(f"{len(campaign.failures)} failures")


if __name__ == "__main__":
    sys.exit(main())
