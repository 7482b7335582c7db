"""`gptexport tune`: which export is the fastest here?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.conversion import read_with_tokenizer
from gptexport.cli.options import Name, OutputPath, Shapes, assumption_options, check_named
from gptexport.cli.output import Output, output_options, size, table
from gptexport_runtime.contract.heads import HEADS, LOGITS

if TYPE_CHECKING:
    from gptexport.tune.choose import Measurement
    from gptexport.tune.tune import Asked, Tuned

LEGEND = """\
ms: a warm call, the median of {rounds} interleaved rounds, each candidate in a process of
its own; × {baseline}: how many times as fast, and the quartiles. KL: from the model in
float64. Memory: the most that the process held. Frontier: none is both faster and as exact."""
NOISE = (
    "{name} and {others} may be as fast as each other here: the rounds overlap. Let nothing else run, or more --rounds."
)
WORTHLESS = "other programs took the cores, or the rounds are far apart: the choice says nothing. Let nothing else run."


@click.command(short_help="Export the fastest that is exact enough here.")
@click.argument("checkpoint")
@click.option("-o", "--out", "out", required=True, type=OutputPath(), help="The bundle to write.")
@click.option(
    "--shape", type=Shapes(), metavar="BXT", default="1x128", show_default=True, help="The B x T that has to be fast."
)
@click.option(
    "--head", type=Name(list(HEADS)), default=LOGITS.name, show_default=True, help="And what of it; decode: one step."
)
@click.option(
    "--max-kl", type=click.FloatRange(min=0), default=0.005, show_default=True, help="The largest mean KL, in nats."
)
@click.option("--max-memory", type=click.FloatRange(min=0), metavar="MB", help="The most memory of a process.")
@click.option("--rounds", type=click.IntRange(min=2), default=7, show_default=True, help="Rounds of measurements.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads.  [default: all usable cores]")
@click.option(
    "--tokens", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Real text to measure errors on."
)
@click.option("--tokenizer", metavar="NAME|FILE", help="For the bundle.  [default: the checkpoint's own]")
@click.option("--plot", type=OutputPath(dir_okay=False), metavar="FILE.svg", help="Draw the frontier.")
@assumption_options
@click.option("--vocab-size", type=click.IntRange(min=1), help="Keep the first N tokens only.")
@click.option("--block-size", type=click.IntRange(min=1), help="The longest sequence, if your own module does not say.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options("tune")
def tune(
    output: Output,
    checkpoint: str,
    out: Path,
    shape: list[tuple[int, int]],
    head: str,
    max_kl: float,
    max_memory: float | None,
    rounds: int,
    threads: int | None,
    tokens: Path | None,
    tokenizer: str | None,
    plot: Path | None,
    vocab_size: int | None,
    block_size: int | None,
    force: bool,
    **assumed: Any,
) -> None:
    """Export CHECKPOINT in every way that this machine runs, measure each, and keep the fastest within the bounds.

    \b
    Examples:
      gptexport tune out/ckpt.pt -o gpt2/
      gptexport tune out/ckpt.pt -o gpt2/ --shape 8x512 --head score --max-kl 1e-6
      gptexport tune out/ckpt.pt -o gpt2/ --shape 1x128 --head decode --tokens val.bin --plot tune.svg

    The bundle that is kept has passed parity in full. A run that was stopped goes on where it was.
    """
    from gptexport.staging import check_output
    from gptexport.tune.chart import CHART, is_chart

    if len(shape) != 1:
        raise click.BadParameter(f"{len(shape)} shapes; expected one, such as 1x128.", param_hint="--shape")
    check_output(out, force=force)
    if out.suffix == ".onnx":
        raise click.BadParameter(f"{out} is a graph's name; tune writes a bundle, a folder.", param_hint="--out")
    if plot is not None and plot.suffix != ".svg":
        raise click.BadParameter(f"{plot.name}: the chart is SVG; name it {plot.stem}.svg.", param_hint="--plot")
    check_named(plot, "--plot", is_chart, CHART)
    loaded, carried = read_with_tokenizer(output, checkpoint, tokenizer, vocab_size, assumed, block_size)

    from gptexport.parity.measure.token_files import read_tokens
    from gptexport.tune.choose import Bounds
    from gptexport.tune.tune import Asked
    from gptexport.tune.tune import tune as choose

    B, T = shape[0]
    if loaded.block_size < T:
        raise click.BadParameter(f"T is {T}, beyond block_size {loaded.block_size}.", param_hint="--shape")
    bounds = Bounds(max_kl=max_kl, max_memory=int(max_memory * 1e6) if max_memory is not None else None)
    asked = Asked(shape=(B, T), head=HEADS[head], bounds=bounds, rounds=rounds, threads=threads)
    ids = read_tokens(tokens, loaded.predicted_ids, None) if tokens is not None else None
    try:
        done = choose(loaded, out, asked, tokens=ids, tokenizer=carried, force=force, progress=output.step)
    except KeyboardInterrupt:
        raise click.Abort("what was made so far is kept: run the same command again to go on.") from None
    output.result(_data(done, out, asked), _text(done, out, asked))
    if plot is not None:
        _draw(output, plot, done, asked)


def _data(done: Tuned, out: Path, asked: Asked) -> dict[str, Any]:
    from gptexport.tune.choose import frontier, in_doubt

    best = frontier(done.measurements)
    return {
        "ok": True,
        "path": str(out),
        "shape": list(asked.shape),
        "head": asked.head.name,
        "max_kl": asked.bounds.max_kl,
        "max_memory": asked.bounds.max_memory,
        "rounds": asked.rounds,
        "baseline": done.baseline,
        "chosen": done.chosen.name,
        "as_fast": [m.name for m in in_doubt(done.within)],
        "worthless": done.chosen.ratio.noisy,
        "left_out": dict(done.left_out),
        "candidates": [
            {
                "name": m.name,
                "kl": _finite(m.kl),
                "noise_ratio": _finite(m.noise_ratio),
                "parity": m.parity,
                "seconds": m.seconds,
                "speed_ratio": None if m.ratio.noisy else m.ratio.median,
                "speed_ratio_quartiles": [m.ratio.low, m.ratio.high],
                "memory_bytes": m.memory,
                "disk_bytes": m.disk,
                "frontier": m in best,
                "why_not": asked.bounds.why_not(m),
            }
            for m in done.measurements
        ],
    }


def _finite(number: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def _text(done: Tuned, out: Path, asked: Asked) -> str:
    from gptexport.tune.candidates import candidates
    from gptexport.tune.choose import frontier, in_doubt

    best = frontier(done.measurements)
    rows = [_row(m, m in best, asked.bounds.why_not(m)) for m in sorted(done.measurements, key=lambda m: m.seconds)]
    header = ("", "ms", f"× {done.baseline}", "quartiles", "KL", "memory", "disk", "frontier", "why not")
    lines = [table(rows, header), "", LEGEND.format(rounds=asked.rounds, baseline=done.baseline)]
    if done.chosen.ratio.noisy:
        lines.append(WORTHLESS)
    elif others := in_doubt(done.within):
        lines.append(NOISE.format(name=done.chosen.name, others=", ".join(m.name for m in others)))
    lines.append(f"\n{out}: {done.chosen.name}, {size(done.chosen.disk)}; it has passed parity in full")
    lines += [f"commands take it with --device {each.device}" for each in candidates() if each.name == done.chosen.name]
    return "\n".join(lines)


def _row(m: Measurement, on_frontier: bool, why_not: str | None) -> tuple[str, ...]:
    return (
        m.name,
        f"{1e3 * m.seconds:.3g}" if m.seconds < 0.1 else f"{1e3 * m.seconds:,.0f}",
        "?" if m.ratio.noisy else f"{m.ratio.median:.2f}",
        f"{m.ratio.low:.2f}–{m.ratio.high:.2f}",
        f"{m.kl:.1e}",
        f"{m.memory / 1e6:,.0f} MB" if m.memory is not None else "–",
        size(m.disk),
        "yes" if on_frontier else "",
        why_not or "",
    )


def _draw(output: Output, plot: Path, done: Tuned, asked: Asked) -> None:
    """The bundle is written by now, so a place that cannot be written costs a note only."""
    from gptexport.errors import OutputError
    from gptexport.staging import write_output
    from gptexport.tune.chart import CHART, Dot, frontier_chart, is_chart
    from gptexport.tune.choose import frontier

    title = "{} at {}×{}".format(asked.head.name, *asked.shape)
    best = frontier(done.measurements)
    chart = frontier_chart(
        title,
        [Dot(m.name, m.kl, m.ratio.median, m in best, m is done.chosen) for m in done.measurements],
        note="higher is faster, left is more exact; the ringed dot was kept",
        error="mean KL divergence from the model in float64, in nats",
        bound=("--max-kl", asked.bounds.max_kl),
    )
    try:
        write_output(plot, chart.encode(), is_ours=is_chart, what=CHART)
    except OutputError as error:
        output.note(f"not drawn: {error}")
