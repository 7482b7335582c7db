"""The report of the GPU check: what it found, against what must be shown, and which of that is met or missed."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from scripts.bench.tables import table
from scripts.gpu import generation
from scripts.gpu.beside import HALF
from scripts.gpu.peers import COMPILED_WIDE, EAGER, GRAPHED, OWN, TUNED_WIDE

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
FLAT = 64e6  # bytes that calls of lengths that have all been there may take more
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
        _decode(results),
        _at_least("score 64×1024 beside logits that come to the host", 5.0, _data(results, "score").get("speed_ratio")),
        *(_noise(results, dtype) for dtype in ("float32", "float16", "bfloat16")),
        _kernels_as_expected(results),
        _flat(results),
        _tests(results),
    ]


# parts, what, shape, beside the fastest of whom, at least
SPEEDS: tuple[tuple[tuple[str, ...], str, str, tuple[str, ...], float], ...] = (
    (("bench", "tuned"), "GPT-2 124M bf16", "8x1024", (COMPILED_WIDE, TUNED_WIDE), 1.0),
    (("bench",), "GPT-2 124M bf16, CUDA graphs", "1x128", (EAGER,), 1.5),
    (("bench",), "GPT-2 124M bf16, CUDA graphs", "1x128", (GRAPHED,), 1.0),
    (("bench",), "GPT-2 124M bf16, CUDA graphs", "1x1", (EAGER,), 1.5),
    (("bench",), "GPT-2 124M bf16, CUDA graphs", "1x1", (GRAPHED,), 1.0),
    (("xl",), "GPT-2 XL's shape bf16", "4x1024", (COMPILED_WIDE,), 1.0),
)


def _speed(
    results: Results, parts: Sequence[str], what: str, shape: str, others: Sequence[str], wanted: float
) -> Target:
    """Beside the fastest of the others that were measured; of float16 nothing is asked."""
    rounds = [
        each["seconds"].get(shape, {})
        for part in parts
        for name, each in _data(results, part).get("passes", {}).items()
        if name != HALF.name
    ]
    found = [value for row in rounds for other in others if (value := ratio(row, OWN, other)) is not None]
    return _at_least(f"{what}, {shape.replace('x', '×')}, beside {others[0]}", wanted, min(found, default=None))


def _decode(results: Results) -> Target:
    """Beside the fastest of transformers' ways, one row."""
    spent = _data(results, "decode").get("seconds_per_token", {})
    own = spent.get(f"{generation.OWN}, 1 rows")
    others = [s for name in (generation.DYNAMIC, generation.STATIC) if (s := spent.get(f"{name}, 1 rows")) is not None]
    found = min(others) / own if own and others else None
    return _at_least("decode, one row, beside transformers", 1.0, found)


def _at_least(name: str, wanted: float, found: float | None) -> Target:
    if found is None:
        return Target(name, f"≥ {wanted:.1f} ×", "–", UNKNOWN)
    return Target(name, f"≥ {wanted:.1f} ×", f"{found:.2f} ×", MET if found >= wanted else MISSED)


def _noise(results: Results, dtype: str) -> Target:
    name, found = f"noise ratio and every head, {dtype}", _data(results, "parity").get(dtype, {})
    if found.get("noise_ratio") is None:
        return Target(name, "≤ 2", str(found.get("reason", "–"))[:80], MISSED if found else UNKNOWN)
    passed = found["noise_ratio"] <= 2.0 and found.get("passed", False)
    return Target(name, "≤ 2", f"{found['noise_ratio']:.2f}", MET if passed else MISSED)


def _kernels_as_expected(results: Results) -> Target:
    said = _data(results, "kernels").get("said", {})
    if not said:
        return Target("attention kernels", "as expected", "–", UNKNOWN)
    wrong = [f"{dtype}: {', '.join(row['unexpected'])}" for dtype, row in said.items() if row["unexpected"]]
    return Target("attention kernels", "as expected", "; ".join(wrong) or "all are", MISSED if wrong else MET)


def _flat(results: Results) -> Target:
    found = _data(results, "memory")
    name, wanted = "memory over calls of growing shapes", f"+ {FLAT / 1e6:.0f} MB at most"
    if "taken" not in found:
        return Target(name, wanted, "–", UNKNOWN)
    more = found["taken"][2] - found["taken"][0]
    told = f"+ {more / 1e6:.0f} MB in {found['calls']:,} calls, {found['taken'][1] / 1e6:,.0f} MB in all"
    return Target(name, wanted, told, MET if more <= FLAT else MISSED)


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
    for part, what in (("bench", "GPT-2 124M"), ("tuned", "GPT-2 124M, max-autotune"), ("xl", "GPT-2 XL's shape")):
        lines += _speeds(what, _data(results, part))
    lines += _scoring(_data(results, "score"))
    lines += _generation(_data(results, "decode"))
    lines += _parity(_data(results, "parity"))
    lines += _kernels(_data(results, "kernels"))
    lines += _micro(_data(results, "micro"))
    lines += ["", "## Parts", ""]
    for part, result in results.items():
        reason = f": {result['reason']}" if result.get("reason") else ""
        with_code = f", code {result['code']}" if result.get("code") else ""
        lines.append(f"- {part}: {result['status']}, {result.get('seconds', 0):.0f} s{with_code}{reason}")
    return "\n".join(lines) + "\n"


def _speeds(what: str, data: Mapping[str, Any]) -> list[str]:
    if not data.get("passes"):
        return []
    rate, flops = data.get("matmul_flop_per_s"), data.get("flops", {})
    lines = ["", f"## {what}, all logits left on the device", ""]
    lines.append("Median milliseconds of a call, until the device is done; in brackets how many times as fast as it")
    lines.append("gptexport was, the median of ratios within the interleaved rounds of a pass. gptexport's logits are")
    lines.append("float32, but where its name says otherwise.")
    for name, each in data["passes"].items():
        peers = list(dict.fromkeys(peer for row in each["seconds"].values() for peer in row))
        rows = []
        for shape, row in each["seconds"].items():
            known = rate and flops.get(shape) and row.get(OWN)
            part = f"{100 * flops[shape] / statistics.median(row[OWN]) / rate:.0f} %" if known else "–"
            rows.append([shape.replace("x", "×"), *(_cell(row, peer) for peer in peers), part])
        lines += ["", f"{name}, {each['dtype']}:", ""]
        lines += table(["B×T", *peers, "gptexport, of the matmul rate"], rows)
        lines += [f"\nNot measured: {peer}: {reason}" for peer, reason in each.get("missing", {}).items()]
    if rate:
        lines += ["", f"Measured bf16 matmul rate, 8192³: {rate / 1e12:.0f} TFLOP/s."]
    return lines


def _cell(row: Mapping[str, Sequence[float]], peer: str) -> str:
    if not row.get(peer):
        return "–"
    speed = ratio(row, OWN, peer) if peer != OWN else None
    return f"{1e3 * statistics.median(row[peer]):.3f}" + (f" ({speed:.2f}×)" if speed is not None else "")


def _scoring(data: Mapping[str, Any]) -> list[str]:
    if "tokens_per_s" not in data:
        return []
    return [
        "",
        "## Scoring",
        "",
        f"score: {data['tokens_per_s']:,.0f} tokens/s, {_bytes(data, '')} to the host for each. Logits of the "
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
        if row.get("noise_ratio") is not None:
            heads = ", ".join(f"{head} {_change(*found)}" for head, found in row["heads"].items())
            rows.append([name, f"{row['noise_ratio']:.2f}", f"{row['max_ratio']:.2f}", str(row["passed"]), heads])
        else:
            why = str(row.get("reason") or row.get("reasons") or "–")
            rows.append([name, why.replace("|", "/").replace("\n", " "), "", "", ""])
    title = "## Parity, against eager on this GPU in the same dtype, and float64"
    return ["", title, "", *table(["dtype", "noise ratio", "max ratio", "passed", "heads"], rows)]


def _change(found: float | str, allowed: float, _passed: bool) -> str:
    return f"{found:.1e} of {allowed:.1e}" if isinstance(found, float) else str(found).replace("|", "/")


def _kernels(data: Mapping[str, Any]) -> list[str]:
    if not data:
        return []
    lines = ["", "## Kernels", ""]
    for dtype, row in data.get("said", {}).items():
        ran = ", ".join(f"{name} × {count}" for name, count in row["ran"].items()) or "none was named"
        lines.append(f"- attention in {dtype}: {ran}")
    for call, copies in data.get("copies", {}).items():
        told = ", ".join(f"{n} × {k}" for k, n in copies.items()) or "none"
        lines.append(f"- {call}: {data.get('launches', {}).get(call, 0)} launches; copies: {told}")
    for call, rows in data.get("longest", {}).items():
        if rows:
            lines += ["", f"Longest in {call}:", "", *(f"- {share:.0%} {name}" for share, name in rows)]
    return lines


def _micro(data: Mapping[str, Any]) -> list[str]:
    if not data.get("rows"):
        return []
    rows = []
    for row in data["rows"]:
        if "failed" in row:
            rows.append([row["label"], "–", "", "", row["failed"].replace("|", "/").replace("\n", " ")])
        else:
            rates = [f"{row['bytes_per_s'] / 1e12:.2f}", f"{row['flop_per_s'] / 1e12:.1f}"]
            rows.append([row["label"], f"{row['us']:.1f}", *rates, f"{row['first_ms']:.1f}"])
    return ["", "## Single nodes", "", *table(["node", "µs", "TB/s", "TFLOP/s", "first, ms"], rows)]


def _generation(data: Mapping[str, Any]) -> list[str]:
    if "seconds_per_token" not in data:
        return []
    launches = data.get("graph_launches", {})
    rows = [[name, f"{1e3 * s:.3f}", str(launches.get(name, "–"))] for name, s in data["seconds_per_token"].items()]
    lines = ["", "## Generation", "", *table(["", "ms a token", "captured graphs replayed in a call"], rows)]
    first = data.get(f"first_token_of_new_lengths_{OWN}")
    if first:
        lines += ["", f"First token of a prompt of a new length: {', '.join(f'{1e3 * s:.1f}' for s in first)} ms."]
    return lines + [f"\nNot measured: {name}: {reason}" for name, reason in data.get("missing", {}).items()]


def report_of(folder: Path, machine: Mapping[str, Any], date: str) -> Path:
    """The day's report of this machine: FOLDER/gpu-DATE.md, or gpu-DATE-2.md where that is of another."""
    for number in itertools.count(1):
        path = folder / (f"gpu-{date}.md" if number == 1 else f"gpu-{date}-{number}.md")
        data = path.with_suffix(".json")
        if not data.exists() or json.loads(data.read_text())["machine"] == dict(machine):
            return path
    raise AssertionError("numbers do not end")


def read_results(report: Path) -> dict[str, Any]:
    """What earlier commands have put into it."""
    data = report.with_suffix(".json")
    results: dict[str, Any] = json.loads(data.read_text())["results"] if data.exists() else {}
    return results


def write_report(report: Path, results: Results, machine: Mapping[str, Any], command: str, date: str) -> list[Target]:
    """The report and its .json. Returns: the targets."""
    report.parent.mkdir(parents=True, exist_ok=True)
    targets = judge(results)
    data = {
        "date": date,
        "command": command,
        "machine": machine,
        "targets": [asdict(target) for target in targets],
        "results": results,
    }
    report.with_suffix(".json").write_text(json.dumps(data, indent=2) + "\n")
    report.write_text(markdown(results, machine, command, date))
    return targets
