"""`gptexport bench`: how fast is it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import DEVICES, OutputPath, Shapes, check_named
from gptexport.cli.output import Output, output_options, table

if TYPE_CHECKING:
    from gptexport.bench import Shape, Timing

OWN = "gptexport"
DEFAULT_SHAPES = ((1, 1), (1, 128), (4, 256), (1, 1024))


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
    type=click.Choice(DEVICES),
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

    The session writes into one buffer, again and again (`out=`). Ratios are medians over rounds, because absolute
    times drift with the machine. Peak memory is that of a process of its own, which loads the artifact and runs once.
    """
    from gptexport.artifacts import describe_artifact
    from gptexport.bench_chart import CHART, is_chart

    check_named(plot, "--plot", is_chart, CHART)
    import numpy as np

    from gptexport_runtime import load

    device = device or describe_artifact(artifact).device

    from gptexport.bench import Candidate, Ids, measure, memory_of, sgemm_rate

    with load(artifact, device=device, threads=threads) as session:
        longest = session.config.block_size or 1024
        grid = list(dict.fromkeys((B, min(T, longest)) for B, T in shapes or DEFAULT_SHAPES))
        buffers = {shape: np.empty((*shape, session.config.vocab_size), np.float32) for shape in grid}

        def run_session(ids: Ids) -> object:
            return session.logits(ids, out=buffers[ids.shape])

        candidates: dict[str, Candidate] = {OWN: run_session}
        model: Mapping[str, Any] = session.manifest.model if session.manifest else {}
        if checkpoint is not None:
            import torch

            from gptexport.checkpoints import load_checkpoint

            torch.set_num_threads(session.threads)
            loaded = load_checkpoint(checkpoint)
            model = {"architecture": loaded.architecture.name, **loaded.config.to_dict()}

            def run_eager(ids: Ids) -> object:
                with torch.inference_mode():
                    return loaded.model(torch.from_numpy(ids))

            candidates["eager"] = run_eager
        baseline = "eager" if checkpoint is not None else OWN
        vocab_size = session.config.predicted_ids
        sgemm = sgemm_rate(session.threads) if device == "cpu" else None
        timings = measure(
            candidates,
            grid,
            vocab_size=vocab_size,
            baseline=baseline,
            rounds=rounds,
            flops=_flops(model),
            sgemm=sgemm,
            progress=output.step,
        )
        used = {"threads": session.threads, "device": session.device, "rounds": rounds, "sgemm_flop_per_s": sgemm}
        threads = session.threads
    output.step("peak memory, in a process of its own for each shape")
    memory = {shape: memory_of(artifact, device, threads, shape) for shape in grid}
    peaks = {shape: found.peak if found else None for shape, found in memory.items()}
    rows = [{**asdict(timing), "peak_bytes": peaks[timing.shape] if timing.name == OWN else None} for timing in timings]
    output.result({"ok": True, **used, "timings": rows}, timing_table(timings, peaks, baseline))
    if plot is not None:
        _draw(output, plot, _chart(artifact, timings, baseline))


def _draw(output: Output, plot: Path, chart: str) -> None:
    """The measurements are printed by now, so a place that cannot be written costs a note only."""
    from gptexport.bench_chart import CHART, is_chart
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


def _chart(artifact: Path, timings: list[Timing], baseline: str) -> str:
    from gptexport.bench_chart import speed_chart

    speeds: dict[str, dict[str, tuple[float, str]]] = {}
    for t in timings:
        speeds.setdefault("{}×{}".format(*t.shape), {})[t.name] = (t.speed_ratio, f"{1e3 * t.median:.1f} ms")
    return speed_chart(f"Logits of {artifact.name}", baseline, speeds)


def timing_table(timings: list[Timing], peaks: Mapping[Shape, int | None], baseline: str) -> str:
    """One row per shape and candidate."""
    rows = [
        (
            "{}x{}".format(*t.shape),
            t.name,
            f"{1e3 * t.median:.1f}",
            f"{1e3 * t.fastest:.1f}",
            f"{t.speed_ratio:.2f}",
            f"{t.tokens_per_second:,.0f}",
            f"{100 * t.gemm_fraction:.0f} %" if t.gemm_fraction is not None else "–",
            f"{peak / 1e6:,.0f} MB" if t.name == OWN and (peak := peaks[t.shape]) is not None else "–",
        )
        for t in timings
    ]
    return table(rows, ("B×T", "", "median ms", "fastest", f"× {baseline}", "tokens/s", "of sgemm", "peak memory"))
