"""`gptexport bench`: how fast is it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import DEVICES, Name, OutputPath, Shapes, check_named
from gptexport.cli.output import Output, output_options, table

if TYPE_CHECKING:
    from gptexport.bench.measure import Ratio, Timing
    from gptexport.bench.worker import Shape

OWN, EAGER = "gptexport", "eager"
DEFAULT_SHAPES = ((1, 1), (1, 128), (4, 256), (1, 1024))
LEGEND = """\
warm: calls back to back; cold: one call after a pause. × {baseline}: how many
times as fast, warm: the median of {rounds} interleaved rounds, each side in a
process of its own, and the quartiles.{noise}"""
NOISE = """
?: other programs took the cores, or the rounds are too far apart to give a
ratio. Let nothing else run, or pass more --rounds."""


@click.command(short_help="Time an artifact, beside eager PyTorch.")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--against",
    "checkpoint",
    metavar="CHECKPOINT",
    help="Also time this checkpoint in eager PyTorch, in the same rounds.",
)
@click.option(
    "--shapes", type=Shapes(), help="The (B,T) shapes to time.  [default: 1x1,1x128,4x256,1x1024 up to block_size]"
)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Rounds of measurements.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads.  [default: all usable cores]")
@click.option(
    "--device",
    type=Name(DEVICES),
    help="Device that runs the artifact.  [default: cpu; cuda for an engine]",
)
@click.option("--plot", type=OutputPath(dir_okay=False), metavar="FILE.svg", help="Write a chart of the speeds.")
@output_options("bench")
def bench(
    output: Output,
    artifact: Path,
    checkpoint: str | None,
    shapes: list[tuple[int, int]] | None,
    rounds: int,
    threads: int | None,
    device: str | None,
    plot: Path | None,
) -> None:
    """Time all logits of ARTIFACT, and of CHECKPOINT in eager PyTorch, in interleaved rounds.

    \b
    Examples:
      gptexport bench gpt2/
      gptexport bench gpt2/ --against out/ckpt.pt --shapes 1x1,1x1024 --plot speed.svg

    Each side is a process of its own, and warm: calls back to back. What a call costs after a pause is told apart, as
    cold. Ratios are taken within a round, because absolute times drift with the machine. The session writes into one
    buffer, again and again (`out=`). Peak memory is that of another process, which loads the artifact and runs once.
    """
    from gptexport.artifacts import describe_artifact
    from gptexport.bench.chart import CHART, is_chart
    from gptexport.bench.machine import memory_of, sgemm_rate
    from gptexport.bench.measure import measure
    from gptexport.bench.worker import workers

    if plot is not None and plot.suffix != ".svg":
        raise click.BadParameter(f"{plot.name}: the chart is SVG; name it {plot.stem}.svg.", param_hint="--plot")
    check_named(plot, "--plot", is_chart, CHART)
    described = describe_artifact(artifact)
    device = device or described.device
    threads, longest = _opened(artifact, device, threads)
    grid = _grid(output, shapes, longest)
    asked: dict[str, dict[str, Any]] = {
        OWN: {"side": "session", "artifact": str(artifact), "device": device, "threads": threads}
    }
    if checkpoint is not None:
        asked[EAGER] = {"side": "eager", "artifact": str(artifact), "checkpoint": checkpoint, "threads": threads}
    baseline = EAGER if checkpoint is not None else OWN
    output.step(f"loading {' and '.join(asked)}, each in a process of its own")
    with workers(asked) as sides:
        facts = {name: side.ready() for name, side in sides.items()}
        sgemm = sgemm_rate(threads) if device == "cpu" else None
        timings = measure(
            sides,
            grid,
            baseline=baseline,
            rounds=rounds,
            flops=_flops(facts[baseline]["model"] or facts[OWN]["model"]),
            sgemm=sgemm,
            progress=output.step,
        )
    output.step("peak memory, in a process of its own for each shape")
    memory = {shape: memory_of(artifact, device, threads, shape) for shape in grid}
    peaks = {shape: found.peak if found else None for shape, found in memory.items()}
    used = {"threads": threads, "device": device, "rounds": rounds, "baseline": baseline, "sgemm_flop_per_s": sgemm}
    output.result({"ok": True, **used, "timings": [_row(t, peaks) for t in timings]}, _text(timings, peaks, used))
    if plot is not None:
        _draw(output, plot, _chart(artifact, timings, baseline))


def _opened(artifact: Path, device: str, threads: int | None) -> tuple[int, int]:
    """How many threads a session takes, and its longest T; an artifact that does not open fails here."""
    from gptexport_runtime import load

    with load(artifact, device=device, threads=threads) as session:
        return session.threads, session.config.block_size or 1024


def _grid(output: Output, shapes: Sequence[Shape] | None, longest: int) -> list[Shape]:
    if any(longest < T for _, T in shapes or ()):
        output.note(f"longer than the context, which is {longest}: those shapes are timed at T = {longest}")
    return list(dict.fromkeys((B, min(T, longest)) for B, T in shapes or DEFAULT_SHAPES))


def _row(timing: Timing, peaks: Mapping[Shape, int | None]) -> dict[str, Any]:
    """What --json says of one side at one shape. Seconds; ratios are null where the noise makes them worthless."""
    ratio = timing.ratio
    return {
        "name": timing.name,
        "shape": timing.shape,
        "warm": timing.warm,
        "fastest": timing.fastest,
        "cold": timing.cold,
        "speed_ratio": None if ratio.noisy else ratio.median,
        "speed_ratio_quartiles": [ratio.low, ratio.high],
        "tokens_per_second": timing.tokens_per_second,
        "gemm_fraction": timing.gemm_fraction,
        "peak_bytes": peaks[timing.shape] if timing.name == OWN else None,
    }


def _draw(output: Output, plot: Path, chart: str) -> None:
    """The measurements are printed by now, so a place that cannot be written costs a note only."""
    from gptexport.bench.chart import CHART, is_chart
    from gptexport.errors import OutputError
    from gptexport.staging import write_output

    try:
        write_output(plot, chart.encode(), is_ours=is_chart, what=CHART)
    except OutputError as error:
        output.note(f"not drawn: {error}")


def _flops(model: Mapping[str, Any]) -> Callable[[int, int], float] | None:
    """The FLOPs of a forward of (B,T), if the model's architecture is known."""
    from gptexport.architectures import described

    found = described(model)
    if found is None or found[0].flops is None:
        return None
    return partial(found[0].flops, found[1])


def _chart(artifact: Path, timings: Sequence[Timing], baseline: str) -> str:
    from gptexport.bench.chart import Bar, speed_chart

    bars: dict[str, dict[str, Bar]] = {}
    for t in timings:
        bar = Bar(t.ratio.median, t.ratio.low, t.ratio.high, t.warm, noisy=t.ratio.noisy)
        bars.setdefault("{}×{}".format(*t.shape), {})[t.name] = bar
    return speed_chart(f"Logits of {artifact.name}", baseline, bars)


def _text(timings: Sequence[Timing], peaks: Mapping[Shape, int | None], used: Mapping[str, Any]) -> str:
    """One row per shape and side, and what the columns mean; 80 columns wide."""
    baseline = used["baseline"]
    rows = [
        (
            "{}x{}".format(*t.shape),
            t.name,
            f"{1e3 * t.warm:.3g}" if t.warm < 0.1 else f"{1e3 * t.warm:,.0f}",
            f"{1e3 * t.cold:.3g}" if t.cold < 0.1 else f"{1e3 * t.cold:,.0f}",
            *(_ratio(t.ratio) if t.name != baseline else ("1", "")),
            f"{t.tokens_per_second:,.0f}",
            f"{100 * t.gemm_fraction:.0f} %" if t.gemm_fraction is not None else "–",
            f"{peak / 1e6:,.0f} MB" if t.name == OWN and (peak := peaks[t.shape]) is not None else "–",
        )
        for t in timings
    ]
    header = ("B×T", "", "warm ms", "cold ms", f"× {baseline}", "", "tokens/s", "of sgemm", "peak")
    noise = NOISE if any(t.ratio.noisy for t in timings) else ""
    legend = LEGEND.format(baseline=baseline, rounds=used["rounds"], noise=noise)
    return f"{table(rows, header)}\n\n{legend}"


def _ratio(ratio: Ratio) -> tuple[str, str]:
    spread = f"{ratio.low:.2f}–{ratio.high:.2f}"
    return ("?" if ratio.noisy else f"{ratio.median:.2f}"), spread
