"""What gpu_check.py found, against what must be shown: targets that are met, missed or not measured, and the report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_peers import COMPILED, EAGER, OWN, OWN_PLAIN, TUNED

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
    lines += ["", "| must show | wanted | found | |", "|---|---|---|---|"]
    lines += [f"| {t.name} | {t.wanted} | {t.found} | {t.verdict} |" for t in judge(results)]
    for part, what in (("bench", "GPT-2 124M, bf16"), ("xl", "GPT-2 XL's shape, bf16")):
        lines += _speeds(what, _data(results, part))
    lines += _others(results)
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
    lines += ["", "| B×T | " + " | ".join(names) + " | of the matmul rate |", "|---" * (len(names) + 2) + "|"]
    for shape, row in data["seconds"].items():
        cells = []
        for name in names:
            speed = ratio(row, name, EAGER)
            told = f"{1e3 * statistics.median(row[name]):.3f}" if row.get(name) else "–"
            cells.append(told + (f" ({speed:.2f}×)" if speed is not None else ""))
        flops = data.get("flops", {}).get(shape)
        known = rate and flops and row.get(OWN)
        fraction = f"{100 * flops / statistics.median(row[OWN]) / rate:.0f} %" if known else "–"
        lines.append(f"| {shape.replace('x', '×')} | {' | '.join(cells)} | {fraction} |")
    if rate:
        lines += ["", f"Measured bf16 matmul rate, 8192³: {rate / 1e12:.0f} TFLOP/s."]
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in data.get("missing", {}).items()]
    return lines


def _others(results: Results) -> list[str]:
    lines = []
    score = _data(results, "score")
    if "tokens_per_s" in score:
        lines += [
            "",
            "## Scoring",
            "",
            f"score 64×1024: {score['tokens_per_s']:,.0f} tokens/s; {score['bytes_per_token']:.1f} bytes come to the "
            f"host for each. Logits of the same tokens, brought to the host and no more done with them: "
            f"{score['host_tokens_per_s']:,.0f} tokens/s, {score['host_bytes_per_token']:,.0f} bytes each.",
        ]
    parity = _data(results, "parity")
    if parity:
        lines += ["", "## Parity, against eager on this GPU in the same dtype, and float64", ""]
        lines += ["| dtype | noise ratio | max ratio | passed |", "|---|---|---|---|"]
        for name, row in parity.items():
            if "noise_ratio" in row:
                lines.append(f"| {name} | {row['noise_ratio']:.2f} | {row['max_ratio']:.2f} | {row['passed']} |")
            else:
                lines.append(f"| {name} | {row.get('reason', '–')} | | |")
    kernels = _data(results, "kernels")
    if kernels:
        lines += ["", "## Kernels", ""]
        lines += [f"Attention: {', '.join(kernels.get('attention', [])) or 'none was seen by that name'}.", ""]
        for call, copies in kernels.get("copies", {}).items():
            lines.append(f"- copies in one {call}: {', '.join(f'{n} × {k}' for k, n in copies.items()) or 'none'}")
        for call, rows in kernels.get("longest", {}).items():
            lines += ["", f"Longest in {call}:", ""]
            lines += [f"- {share:.0%} {name}" for name, share in rows]
    decode = _data(results, "decode")
    if decode:
        lines += ["", "## Generation, milliseconds a token", ""]
        lines += [f"- {name}: {1e3 * value:.3f}" for name, value in decode.items() if isinstance(value, float)]
    return lines


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
