"""What `gptexport parity` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptexport.cli.output import facts, table

TOP1 = "top1_agreement"

if TYPE_CHECKING:
    from gptexport.parity import Diagnosis, ParityResult, Verdict
    from gptexport.parity.locate.cause import Attribution
    from gptexport.parity.locate.search import WrongStep
    from gptexport.parity.verdict.statistics import Mean, Summary


def result_text(result: ParityResult) -> str:
    """Tables first, then the verdict, then where it is wrong, and why."""
    verdict = result.verdict
    real_text, statistical = result.measured.real_text, verdict.gates.statistical
    parts = _tables(verdict)
    if verdict.summary is not None:
        parts.append(summary_text(verdict.summary, real_text=real_text, statistical=statistical))
    parts += _judged(verdict)
    parts.append(_passed(verdict) if verdict else _failed(verdict))
    parts += [f"NOTE   {note}" for note in verdict.notes]
    parts += _diagnosis(result.diagnosis, passed=verdict.passed)
    if result.gelu is not None and not verdict:
        parts.append(result.gelu.advice())
    return "\n\n".join(parts)


def _tables(verdict: Verdict) -> list[str]:
    parts = [_shapes(verdict)] if verdict.shapes else []
    if verdict.invariances:
        changes = [
            (i.name, f"{i.max_change:.1e}", f"{i.allowed:.1e}", "ok" if i.passed else "FAIL")
            for i in verdict.invariances
        ]
        parts.append(table(changes, ("must not change", "changed by", "allowed", "")))
    return parts


def _shapes(verdict: Verdict) -> str:
    """Each shape of the grid. Of quantized weights without what is judged of others alone, beside eager's noise."""
    named = [("{}x{}".format(*row.shape), row) for row in verdict.shapes]
    named += [("special", verdict.special)] if verdict.special else []
    if verdict.gates.statistical:
        rows = [
            (name, f"{row.relative_rms:.1e}", f"{row.kl_mean:.0e}", f"{100 * row.top1_agreement:.2f} %", str(row.flips))
            for name, row in named
        ]
        return table(rows, ("B×T", "rel. RMS", "mean KL", "top-1", "flips"))
    judged = [
        (
            name,
            f"{row.noise_ratio:.2f}",
            f"{row.max_ratio:.2f}",
            f"{row.relative_rms:.1e}",
            f"{row.eager_relative_rms:.1e}",
            f"{row.kl_mean:.0e}",
            f"{100 * row.top1_agreement:.2f} %",
            f"{row.flips} ({row.flips_outside_ties} real)" if row.flips else "0",
            "ok" if row.passed else "FAIL",
        )
        for name, row in named
    ]
    return table(judged, ("B×T", "noise ratio", "max ratio", "rel. RMS", "eager's", "mean KL", "top-1", "flips", ""))


def _judged(verdict: Verdict) -> list[str]:
    """What is judged over the whole grid, beside its gate."""
    rows = [
        (
            name_of(each.gate),
            figure(each.gate, each.value),
            f"{'at least' if each.gate == TOP1 else 'at most'} {figure(each.gate, each.bound)}",
            "ok" if each.passed else "FAIL",
        )
        for each in verdict.statistics
    ]
    return [table(rows, ("over all positions", "", "gate", ""))] if rows else []


def name_of(gate: str) -> str:
    """As people call it."""
    return {"kl_mean": "mean KL", TOP1: "top-1 but for near-ties"}.get(gate, gate.replace("_", " "))


def figure(gate: str, value: float) -> str:
    if gate == TOP1:
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if gate == "perplexity_ratio" else f"{value:.1e}"


def _passed(verdict: Verdict) -> str:
    if verdict.gates.statistical:
        return "PASS  the statistics of the quantized model are within its gates."
    return f"PASS  the same model in {verdict.dtype}: at worst {verdict.noise_ratio:.2f} × eager's own rounding noise."


def _failed(verdict: Verdict) -> str:
    return "\n".join(["FAIL  not the same model:", *(f"  {reason}" for reason in verdict.reasons)])


def summary_text(summary: Summary, *, real_text: bool, statistical: bool = False) -> str:
    """The figures of llama.cpp's --kl-divergence, over the whole grid."""

    def percentiles(values: dict[str, float]) -> str:
        return ", ".join(f"{'median' if p == '50' else p + ' %'} {value:.1e}" for p, value in values.items())

    rows: list[tuple[str, object]] = [
        ("KL divergence", f"{_mean(summary.kl)}, max {summary.kl_max:.1e}; {percentiles(summary.kl_percentiles)}"),
        ("top-1, top-5", f"{100 * summary.top1.mean:.2f} %, {100 * summary.top5.mean:.2f} % of {summary.positions}"),
    ]
    if not statistical:  # beside eager's own noise, which is not what quantized weights are held to
        flips = f"{summary.flips}: {summary.flips_in_ties} in ties, {summary.flips_outside_ties} real"
        rows.append(("flips", flips))
    if summary.dp_rms is not None:
        rows.append(("Δp of the next token", f"RMS {_mean(summary.dp_rms)}; {percentiles(summary.dp_percentiles)}"))
    if real_text and summary.perplexity is not None and summary.perplexity_ratio is not None:
        change = summary.perplexity_ratio
        perplexity = f"{summary.perplexity.mean:.4g} ± {summary.perplexity.se:.2g}"
        rows.append(("perplexity", f"{perplexity}; ratio − 1 = {change.mean - 1:.1e} ± {change.se:.1e}"))
    return facts(rows)


def _mean(of: Mean) -> str:
    return f"{of.mean:.2e} ± {of.se:.0e}"


def _diagnosis(diagnosis: Diagnosis, *, passed: bool) -> list[str]:
    wrong, attribution = diagnosis.wrong_step, diagnosis.attribution
    parts = [_wrong_step(wrong, passed=passed)] if wrong is not None else []
    return [*parts, _cause(attribution)] if attribution is not None else parts


def _wrong_step(wrong: WrongStep, *, passed: bool) -> str:
    lines = [f"WHERE  {wrong.sentence()}"]
    if passed:
        lines = [f"NOTE   within the gates, though one step alone is not: {wrong.sentence()}"]
    if wrong.claim and wrong.left is not None:
        lines.append(f"       with that in its place ×{wrong.left:.2g} of the noise is left")
    if wrong.untried:
        lines.append(f"       {wrong.untried}")
    if wrong.also:
        shown = ", ".join(wrong.also[:6]) + (f", and {len(wrong.also) - 6} more" if len(wrong.also) > 6 else "")
        lines.append(f"       also wrong on their own inputs: {shown}")
    return "\n".join(lines)


def _cause(attribution: Attribution) -> str:
    marks = {True: "right", False: "WRONG", None: "not run"}
    lines = [f"CAUSE  {attribution.sentence}"]
    for result in attribution.stages:
        amount = f"{result.noise_ratio:.3g} × the noise" if result.noise_ratio is not None else result.why
        lines.append(f"       {marks[result.right]:8}{result.name}: {amount}")
    return "\n".join(lines)
