"""What the benchmarks have in common: their options, ratios within rounds, and tables in Markdown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Shape = tuple[int, int]  # (B,T)


def options(description: str | None, *, writes: str, rounds: int = 7) -> argparse.ArgumentParser:
    """A parser with --rounds and --out; `writes` names the files that --out makes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=Path, help=f"write {writes}")
    return parser


def shapes_of(text: str) -> list[Shape]:
    """`1x1,8x512` as [(1, 1), (8, 512)]."""
    return [(int(B), int(T)) for B, T in (shape.split("x") for shape in text.split(","))]


def machine() -> str:
    """The CPU: `2 cores of an AMD EPYC (family 26, model 2; avx512f avx512_bf16)`, where Linux tells it."""
    from gptexport.doctor import cpu_instructions

    count, cpuinfo = os.cpu_count(), Path("/proc/cpuinfo")
    said = dict(re.findall(r"^(.+?)\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)) if cpuinfo.exists() else {}
    if "model name" not in said:
        return f"{count} {platform.machine()} cores"
    which = f"family {said.get('cpu family')}, model {said.get('model')}; {' '.join(cpu_instructions())}"
    return f"{count} cores of {said['model name']} ({which})"


def speed(seconds: Sequence[float], beside: Sequence[float]) -> float:
    """How many times as fast as `beside`: the median of ratios within rounds."""
    return statistics.median(theirs / own for theirs, own in zip(beside, seconds, strict=True))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def write(out: Path | None, markdown: Sequence[str], data: Mapping[str, object] | None = None) -> None:
    """Print the Markdown; with `out`, also write OUT.md, and OUT.json of the data."""
    print("\n".join(markdown))
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(markdown) + "\n")
    if data is not None:
        out.with_suffix(".json").write_text(json.dumps(data, indent=2) + "\n")
