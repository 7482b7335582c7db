"""One HTML file that says it all: the verdict first, then what it rests on. Opens offline, prints, reads aloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np

from gptexport.parity.locate.diagnosis import Diagnosis
from gptexport.parity.measure.measured import Measured
from gptexport.parity.measure.metrics import Positions, ShapeStats
from gptexport.parity.report.figures import errors_section, shapes_chart, steps_section
from gptexport.parity.report.style import STYLE
from gptexport.parity.report.table import table
from gptexport.parity.result import ParityResult
from gptexport.parity.verdict.judge import Verdict
from gptexport.parity.verdict.statistics import Mean
from gptexport.precision import Gates
from gptexport.staging import write_output
from gptexport_runtime.text import Tokenizer

WORST = 12
CONTEXT = 8
HEAD = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
MADE_BY = '<meta name="generator" content="gptexport parity">'
REPORT = "report of gptexport parity"


def write_report(path: Path, result: ParityResult, tokenizer: Tokenizer | None) -> None:
    """Write the report; an older one there is replaced.

    Raises:
        OutputExistsError: something else is there.
        OutputError: it cannot be written.
    """
    measured, verdict, diagnosis = result.measured, result.verdict, result.diagnosis
    title = f"{'PASS' if verdict else 'FAIL'}: {measured.environment.get('artifact', 'parity')}"
    sections = [
        _verdict(verdict, measured),
        _wrong_step(diagnosis, passed=verdict.passed),
        _cause(result),
        _shapes(verdict),
        _must_not_change(verdict),
        errors_section(measured),
        steps_section(diagnosis.steps),
        _statistics(verdict, real_text=measured.real_text),
        _worst(measured, tokenizer),
        _environment(measured, verdict.gates),
        _glossary(),
    ]
    page = (
        f"{HEAD}{MADE_BY}<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )
    write_output(path, page.encode("utf-8", "replace"), is_ours=is_report, what=REPORT)


def is_report(path: Path) -> bool:
    """Is it a file of `write_report`? Before 0.2 they did not say who made them."""
    with path.open("rb") as file:
        begins = file.read(len(HEAD + MADE_BY)).decode("utf-8", "replace")
    return begins.startswith((HEAD + MADE_BY, HEAD + "<title>PASS: ", HEAD + "<title>FAIL: "))


def _verdict(verdict: Verdict, measured: Measured) -> str:
    artifact, checkpoint = (escape(str(measured.environment.get(k, "?"))) for k in ("artifact", "checkpoint"))
    if verdict.passed and verdict.noise_ratio is not None and not verdict.gates.statistical:
        text = f"It is the same model: its error is at worst {verdict.noise_ratio:.2f} × eager PyTorch's own rounding."
    else:
        text = "It is within the gates of quantized weights." if verdict.passed else "It is not the same model."
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    state = "pass" if verdict else "fail"
    return (
        f'<header class="{state}"><p class="state">{state.upper()}</p><h1>{artifact}</h1>'
        f"<p>against {checkpoint}, in {escape(measured.precision.dtype)}. {text}</p>"
        + (f"<ul>{reasons}</ul>" if reasons else "")
        + "".join(f"<p>Note: {escape(note)}.</p>" for note in verdict.notes)
        + "</header>"
    )


def _wrong_step(diagnosis: Diagnosis, *, passed: bool) -> str:
    wrong = diagnosis.wrong_step
    if wrong is None:
        return ""
    heading = "One step alone is not within its noise" if passed else "Where it is wrong"
    parts = [f"<h2>{heading}</h2><p><strong>{escape(wrong.sentence())}</strong></p>"]
    if wrong.claim and wrong.left is not None:
        parts.append(
            "<p>The claim was tried: with that in place of the right computation, "
            f"{wrong.left:.2g} × the noise is all that is left of the error.</p>"
        )
    if wrong.also:
        parts.append(f"<p>Also wrong on their own inputs: {escape(', '.join(wrong.also))}.</p>")
    return f"<section>{''.join(parts)}</section>"


def _cause(result: ParityResult) -> str:
    found = result.diagnosis.attribution
    advice = f"<p><strong>{escape(result.gelu.advice())}</strong></p>" if result.gelu and not result.verdict else ""
    if found is None:
        return f"<section><h2>What to do</h2>{advice}</section>" if advice else ""
    rows = []
    for stage in found.stages:
        mark = {True: "right", False: "wrong", None: "not run"}[stage.right]
        amount = f"{stage.noise_ratio:.3g}" if stage.noise_ratio is not None else stage.why
        rows.append([stage.name, mark, amount])
    sentence = found.sentence[:1].upper() + found.sentence[1:]
    stages = table(["stage", "", "× the noise"], rows)
    return f"<section><h2>The cause</h2><p>{escape(sentence)}.</p>{stages}{advice}</section>"


def _shapes(verdict: Verdict) -> str:
    if not verdict.shapes:
        return ""
    special = [(verdict.special, ", special ids")] if verdict.special else []
    rows = [
        [
            "{} × {}".format(*row.shape) + what,
            "ok" if row.passed else "FAIL",
            f"{row.noise_ratio:.2f}",
            f"{row.max_ratio:.2f}",
            f"{row.relative_rms:.1e}",
            f"{row.eager_relative_rms:.1e}",
            f"{row.kl_mean:.0e}",
            f"{100 * row.top1_agreement:.2f} %",
            f"{row.flips} ({row.flips_outside_ties})",
        ]
        for row, what in [*((row, "") for row in verdict.shapes), *special]
    ]
    header = ["B × T", "", "noise ratio", "max ratio", "rel. RMS", "eager's", "mean KL", "top-1", "flips (real)"]
    return f"<section><h2>Every shape of the grid</h2>{table(header, rows)}{shapes_chart(verdict)}</section>"


def _must_not_change(verdict: Verdict) -> str:
    rows = [
        [i.name, "ok" if i.passed else "FAIL", f"{i.max_change:.1e}", f"{i.allowed:.1e}"] for i in verdict.invariances
    ]
    text = table(["", "", "changed by", "allowed"], rows)
    return f"<section><h2>What must not change</h2>{text}</section>" if rows else ""


def _statistics(verdict: Verdict, *, real_text: bool) -> str:
    summary = verdict.summary
    if summary is None:
        return ""
    rows = [["mean", f"{summary.kl.mean:.2e} ± {summary.kl.se:.0e}"], ["maximum", f"{summary.kl_max:.2e}"]]
    rows += [["median" if p == "50" else f"{p} %", f"{value:.2e}"] for p, value in summary.kl_percentiles.items()]
    other = [
        ["top-1 agreement", _percent(summary.top1)],
        ["top-5 agreement", _percent(summary.top5)],
        ["flips in ties, real", f"{summary.flips_in_ties}, {summary.flips_outside_ties}"],
    ]
    if summary.dp_rms is not None:
        other.append(["RMS Δp of the token that came", f"{summary.dp_rms.mean:.2e} ± {summary.dp_rms.se:.0e}"])
        other += [
            ["median Δp" if p == "50" else f"Δp {p} %", f"{value:+.1e}"] for p, value in summary.dp_percentiles.items()
        ]
    if real_text and summary.perplexity and summary.actual_perplexity and summary.perplexity_ratio:
        ratio = summary.perplexity_ratio
        other.append(["perplexity of the checkpoint", f"{summary.perplexity.mean:.5g} ± {summary.perplexity.se:.2g}"])
        other.append(["of the artifact", f"{summary.actual_perplexity.mean:.5g}"])
        other.append(["ratio", f"{ratio.mean:.7f} ± {ratio.se:.0e}"])
    parts = [f"<h2>Over all {summary.positions} positions</h2><div class=charts>"]
    parts += [table(["KL divergence, nats", ""], rows), table(["predictions", ""], other), "</div>"]
    for name, groups in (("position", summary.by_position), ("row of the widest batch", summary.by_row)):
        if groups:
            cells = [[g.name, str(g.positions), f"{g.noise_ratio:.2f}", f"{g.kl_mean:.1e}"] for g in groups]
            text = table([name, "positions", "noise ratio", "mean KL"], cells)
            parts.append(f"<details><summary>By {name}</summary>{text}</details>")
    return f"<section>{''.join(parts)}</section>"


def _percent(share: Mean) -> str:
    return f"{100 * share.mean:.3f} ± {100 * share.se:.3f} %"


def _worst(measured: Measured, tokenizer: Tokenizer | None) -> str:
    """The positions where the artifact's distribution is farthest from the checkpoint's, with what came before."""
    found: list[tuple[float, ShapeStats, int]] = []
    for stats in measured.stats:
        if stats.each is not None and stats.actual.finite:
            found += [(float(stats.each.kl[k]), stats, int(k)) for k in np.argsort(-stats.each.kl)[:WORST]]
    rows = []
    for kl, stats, k in sorted(found, key=lambda item: -item[0])[:WORST]:
        each = stats.each
        assert each is not None
        context = each.id[max(k - int(each.t[k]), k - CONTEXT + 1) : k + 1]
        rows.append(
            [
                "{}×{}, t\u00a0=\u00a0{}".format(*stats.shape, each.t[k]),
                _tokens(context, tokenizer),
                _tokens([each.expected_top[k]], tokenizer),
                _tokens([each.actual_top[k]], tokenizer) if each.actual_top[k] != each.expected_top[k] else "the same",
                f"{kl:.1e}",
                _ratio(each, k),
            ]
        )
    header = ["where", "what came before", "checkpoint says", "artifact says", "KL", "error / eager's"]
    return f"<section><h2>The worst tokens</h2>{table(header, rows)}</section>" if rows else ""


def _ratio(each: Positions, k: int) -> str:
    return f"{each.error[k] / each.eager_error[k]:.2f}" if each.eager_error[k] else "–"


def _tokens(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return " ".join(str(int(i)) for i in ids)
    return "".join(tokenizer.show(int(i)) for i in ids).replace("\n", "⏎").replace(" ", "␣")


def _environment(measured: Measured, gates: Gates) -> str:
    rows = [[str(name), str(value)] for name, value in measured.environment.items()]
    if rows:
        limits = [
            f"{name} {value:g}" for name, value in asdict(gates).items() if value is not None and name != "statistical"
        ]
        rows += [["ids", "real text" if measured.real_text else "random"], ["gates", ", ".join(limits)]]
    text = f'<div class="hashes">{table(["", ""], rows)}</div>'
    return f"<section><h2>Environment and hashes</h2>{text}</section>" if rows else ""


def _glossary() -> str:
    terms = {
        "noise": "the error of eager PyTorch in the artifact's dtype against the same model in float64",
        "noise ratio": "RMS error of the artifact over that of eager, both against float64",
        "max ratio": "the same of the largest errors",
        "flip": "a position whose most probable token is another; real where no rounding explains it",
        "KL": "divergence of the artifact's distribution of the next token from the checkpoint's, in nats",
        "Δp": "change of the probability of the token that came",
    }
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return f"<section><h2>Glossary</h2><dl>{items}</dl></section>"
