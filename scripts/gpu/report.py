"""The report of the GPU check: what it found, against what must be shown, and which of that is met or missed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from scripts.bench.tables import table
from scripts.gpu.peers import COMPILED, EAGER, OWN, OWN_PLAIN, TUNED

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
Results = Mapping[str, Mapping[str, Any]]  # by part: {"status": ..., "data": ..., "reason": ...}


@dataclass(frozen=True)
class Target:
    """Something that must be shown on a GPU, and whether it was."""

    name: str
    wanted: str
    found: str
    verdict: str  # MET, MISSED or UNKNOWN


def ratio(seconds: Mapping[str, Sequence[float]], name: str, other: str) -> float | None:
    """The speed of `name` relative to `other`: the median of ratios within rounds; None where one was not measured."""
    mine, theirs = seconds.get(name), seconds.get(other)
    if not mine or not theirs:
        return None
    return statistics.median(b / a for a, b in zip(mine, theirs, strict=False))


def judge(results: Results) -> list[Target]:
    """Every target, in the order of the report."""
    return [
        *(_speed(results, *row) for row in SPEEDS),
        _at_least("score 64×1024 beside logits that come to the host", 5.0, _data(results, "score").get("speed_ratio")),
        *(_noise(results, dtype) for dtype in ("float32", "float16", "bfloat16")),
        _tests(results),
    ]


# part, what, shape, beside whom, at least
SPEEDS: tuple[tuple[str, str, str, tuple[str, ...], float], ...] = (
    ("bench", "GPT-2 124M bf16", "8x1024", (COMPILED, TUNED), 1.0),
    ("bench", "GPT-2 124M bf16, CUDA graphs", "1x128", (EAGER,), 1.5),
    ("bench", "GPT-2 124M bf16, CUDA graphs", "1x1", (EAGER,), 1.5),
    ("xl", "GPT-2 XL's shape bf16", "4x1024", (COMPILED, TUNED), 1.0),
)


def _speed(results: Results, part: str, what: str, shape: str, others: tuple[str, ...], wanted: float) -> Target:
    """Beside the fastest of the others that were measured."""
    seconds = _data(results, part).get("seconds", {}).get(shape, {})
    found = [value for value in (ratio(seconds, OWN, other) for other in others) if value is not None]
    return _at_least(f"{what}, {shape.replace('x', '×')}, beside {others[0]}", wanted, min(found, default=None))


def _at_least(name: str, wanted: float, found: float | None) -> Target:
    if found is None:
        return Target(name, f"≥ {wanted:.1f} ×", "–", UNKNOWN)
    return Target(name, f"≥ {wanted:.1f} ×", f"{found:.2f} ×", MET if found >= wanted else MISSED)


def _noise(results: Results, dtype: str) -> Target:
    found = _data(results, "parity").get(dtype, {})
    if "noise_ratio" not in found:
        return Target(f"noise ratio, {dtype}", "≤ 2", "–", UNKNOWN)
    passed = found["noise_ratio"] <= 2.0 and found.get("passed", False)
    return Target(f"noise ratio, {dtype}", "≤ 2", f"{found['noise_ratio']:.2f}", MET if passed else MISSED)


def _tests(results: Results) -> Target:
    found = _data(results, "tests")
    if "passed" not in found:
        return Target("pytest -m gpu", "all pass", "–", UNKNOWN)
    told = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
    return Target("pytest -m gpu", "all pass", told, MET if found["passed"] and not found["failed"] else MISSED)


def _data(results: Results, part: str) -> Mapping[str, Any]:
    return results.get(part, {}).get("data") or {}


def markdown(results: Results, machine: Mapping[str, Any], command: str, date: str) -> str:
    """The whole report."""
    lines = [f"# On a GPU, {date}", "", f"`{command}`", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", *table(["must show", "wanted", "found", ""], [astuple(target) for target in judge(results)])]
    for part, what in (("bench", "GPT-2 124M, bf16"), ("xl", "GPT-2 XL's shape, bf16")):
        lines += _speeds(what, _data(results, part))
    lines += _scoring(_data(results, "score"))
    lines += _parity(_data(results, "parity"))
    lines += _kernels(_data(results, "kernels"))
    lines += _generation(_data(results, "decode"))
    lines += ["", "## Parts", ""]
    for part, result in results.items():
        reason = f": {result['reason']}" if result.get("reason") else ""
        lines.append(f"- {part}: {result['status']}, {result.get('seconds', 0):.0f} s{reason}")
    return "\n".join(lines) + "\n"


def _speeds(what: str, data: Mapping[str, Any]) -> list[str]:
    if not data.get("seconds"):
        return []
    names = [n for n in (OWN, OWN_PLAIN, EAGER, COMPILED, TUNED) if any(n in row for row in data["seconds"].values())]
    rate = data.get("matmul_flop_per_s")
    lines = ["", f"## {what}, all logits left on the device", ""]
    lines.append("Median milliseconds of a call, until the device is done; in brackets the speed relative to eager,")
    lines.append(
        "the median of ratios within interleaved rounds. gptexport's logits are float32, the others' bfloat16."
    )
    rows = []
    for shape, row in data["seconds"].items():
        cells = []
        for name in names:
            speed = ratio(row, name, EAGER)
            median = f"{1e3 * statistics.median(row[name]):.3f}" if row.get(name) else "–"
            cells.append(median + (f" ({speed:.2f}×)" if speed is not None else ""))
        flops = data.get("flops", {}).get(shape)
        known = rate and flops and row.get(OWN)
        fraction = f"{100 * flops / statistics.median(row[OWN]) / rate:.0f} %" if known else "–"
        rows.append([shape.replace("x", "×"), *cells, fraction])
    lines += ["", *table(["B×T", *names, "of the matmul rate"], rows)]
    if rate:
        lines += ["", f"Measured bf16 matmul rate, 8192³: {rate / 1e12:.0f} TFLOP/s."]
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in data.get("missing", {}).items()]
    return lines


def _scoring(data: Mapping[str, Any]) -> list[str]:
    if "tokens_per_s" not in data:
        return []
    return [
        "",
        "## Scoring",
        "",
        f"score 64×1024: {data['tokens_per_s']:,.0f} tokens/s, {_bytes(data, '')} to the host for each. Logits of the "
        f"same tokens, brought to the host and no more done with them: {data['host_tokens_per_s']:,.0f} tokens/s, "
        f"{_bytes(data, 'host_')} each.",
    ]


def _bytes(data: Mapping[str, Any], which: str) -> str:
    count = data.get(f"{which}bytes_per_token")
    return f"{count:,.1f} bytes" if count is not None else "bytes that were not counted"


def _parity(data: Mapping[str, Any]) -> list[str]:
    if not data:
        return []
    rows = []
    for name, row in data.items():
        if "noise_ratio" in row:
            rows.append([name, f"{row['noise_ratio']:.2f}", f"{row['max_ratio']:.2f}", str(row["passed"])])
        else:
            rows.append([name, str(row.get("reason", "–")), "", ""])
    title = "## Parity, against eager on this GPU in the same dtype, and float64"
    return ["", title, "", *table(["dtype", "noise ratio", "max ratio", "passed"], rows)]


def _kernels(data: Mapping[str, Any]) -> list[str]:
    if not data:
        return []
    lines = ["", "## Kernels", ""]
    lines += [f"Attention: {', '.join(data.get('attention', [])) or 'none was seen by that name'}.", ""]
    for call, copies in data.get("copies", {}).items():
        lines.append(f"- copies in one {call}: {', '.join(f'{n} × {k}' for k, n in copies.items()) or 'none'}")
    for call, rows in data.get("longest", {}).items():
        lines += ["", f"Longest in {call}:", "", *(f"- {share:.0%} {name}" for share, name in rows)]
    return lines


def _generation(data: Mapping[str, Any]) -> list[str]:
    if "seconds_per_token" not in data:
        return []
    launches = data.get("graph_launches", {})
    rows = [[name, f"{1e3 * s:.3f}", str(launches.get(name, "–"))] for name, s in data["seconds_per_token"].items()]
    return ["", "## Generation", "", *table(["", "ms a token", "captured graphs replayed, for 64 tokens"], rows)]


def write_report(
    folder: Path, results: Results, machine: Mapping[str, Any], command: str, date: str
) -> tuple[Path, list[Target]]:
    """FOLDER/gpu-DATE.md and .json; the first one's path, and the targets."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = judge(results)
    data = {
        "date": date,
        "command": command,
        "machine": machine,
        "targets": [asdict(target) for target in targets],
        "results": results,
    }
    (folder / f"gpu-{date}.json").write_text(json.dumps(data, indent=2) + "\n")
    path = folder / f"gpu-{date}.md"
    path.write_text(markdown(results, machine, command, date))
    return path, targets
