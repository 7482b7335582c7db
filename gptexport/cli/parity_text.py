"""A verdict, in words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptexport.cli.output import facts, table

if TYPE_CHECKING:
    from gptexport.config import GPTConfig
    from gptexport.parity import Diagnosis, Verdict
    from gptexport.parity.statistics import Mean, Summary
    from gptexport_runtime.contract.manifest import Manifest
    from gptexport_runtime.engine_file import EngineInfo


def verdict_text(verdict: Verdict, diagnosis: Diagnosis | None, *, real_text: bool) -> str:
    """Tables first, the verdict last, where the eye is."""
    parts = []
    if verdict.shapes:
        rows = [
            (
                "{}x{}".format(*row.shape),
                f"{row.noise_ratio:.2f}",
                f"{row.max_ratio:.2f}",
                f"{row.relative_rms:.1e}",
                f"{row.eager_relative_rms:.1e}",
                f"{row.kl_mean:.0e}",
                f"{100 * row.top1_agreement:.2f} %",
                f"{row.flips} ({row.flips_outside_ties})",
                "ok" if row.passed else "FAIL",
            )
            for row in verdict.shapes
        ]
        header = ("B×T", "noise ratio", "max ratio", "rel. RMS", "eager's", "mean KL", "top-1", "flips (real)", "")
        parts.append(table(rows, header))
    if verdict.invariances:
        rows2 = [
            (i.name, f"{i.max_change:.1e}", f"{i.allowed:.1e}", "ok" if i.passed else "FAIL")
            for i in verdict.invariances
        ]
        parts.append(table(rows2, ("must not change", "changed by", "rounding explains", "")))
    if verdict.summary is not None:
        parts.append(summary_text(verdict.summary, real_text=real_text))
    if verdict.passed:
        parts.append(_passed(verdict))
    else:
        parts.append("\n".join(["FAIL  not the same model:", *(f"  {reason}" for reason in verdict.reasons)]))
    if diagnosis is not None:
        parts += _diagnosis(diagnosis, passed=verdict.passed)
    return "\n\n".join(parts)


def _passed(verdict: Verdict) -> str:
    if verdict.gates.statistical:
        return "PASS  the statistics of the quantized model are within its gates."
    return f"PASS  the same model in {verdict.dtype}: at worst {verdict.noise_ratio:.2f} × eager's own rounding noise."


def summary_text(summary: Summary, *, real_text: bool) -> str:
    """The figures of llama.cpp's --kl-divergence, over the whole grid."""

    def percentiles(values: dict[str, float]) -> str:
        return ", ".join(f"{'median' if p == '50' else p + ' %'} {value:.1e}" for p, value in values.items())

    rows: list[tuple[str, object]] = [
        ("KL divergence", f"{_mean(summary.kl)}, max {summary.kl_max:.1e}; {percentiles(summary.kl_percentiles)}"),
        ("top-1, top-5", f"{100 * summary.top1.mean:.2f} %, {100 * summary.top5.mean:.2f} % of {summary.positions}"),
        ("flips", f"{summary.flips}: {summary.flips_in_ties} in ties, {summary.flips_outside_ties} real"),
    ]
    if summary.dp_rms is not None:
        rows.append(("Δp of the next token", f"RMS {_mean(summary.dp_rms)}; {percentiles(summary.dp_percentiles)}"))
    if real_text and summary.perplexity is not None and summary.perplexity_ratio is not None:
        change = summary.perplexity_ratio
        told = f"{summary.perplexity.mean:.4g} ± {summary.perplexity.se:.2g}"
        rows.append(("perplexity", f"{told}; ratio − 1 = {change.mean - 1:.1e} ± {change.se:.1e}"))
    return facts(rows)


def _mean(of: Mean) -> str:
    return f"{of.mean:.2e} ± {of.se:.0e}"


def _diagnosis(diagnosis: Diagnosis, *, passed: bool) -> list[str]:
    parts = []
    found = diagnosis.divergence
    if found is not None:
        lines = [f"WHERE  {found.sentence()}"]
        if passed:
            lines = [f"NOTE   within the gates, though one step alone is not: {found.sentence()}"]
        if found.claim and found.left is not None:
            lines.append(f"       with that in its place ×{found.left:.2g} of the noise is left")
        if found.also:
            shown = ", ".join(found.also[:6]) + (f", and {len(found.also) - 6} more" if len(found.also) > 6 else "")
            lines.append(f"       also wrong on their own inputs: {shown}")
        parts.append("\n".join(lines))
    if diagnosis.blame is not None:
        marks = {True: "right", False: "WRONG", None: "not run"}
        lines = [f"WHO    {diagnosis.blame.sentence}"]
        for stage in diagnosis.blame.stages:
            amount = f"{stage.noise_ratio:.3g} × the noise" if stage.noise_ratio is not None else stage.why
            lines.append(f"       {marks[stage.right]:8}{stage.name}: {amount}")
        parts.append("\n".join(lines))
    return parts


def hint_text(verdict: Verdict, described: Manifest | EngineInfo | None, config: GPTConfig | None) -> str:
    """The one mistake that is not the export's: --gelu given there and not here."""
    gelu = config.gelu if config else None
    exported = described.model.get("gelu") if described else None
    if verdict.passed or exported is None or gelu is None or exported == gelu:
        return ""
    return (
        f"\n\nThe artifact was exported with GELU {exported}; this checkpoint's is taken to be {gelu}. "
        f"If it was trained with {exported}, pass --gelu {exported} here too."
    )
