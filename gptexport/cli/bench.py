"""`gptexport bench`: how fast is it?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gptexport.cli.options import Shapes
from gptexport.cli.output import Output, output_options, table

if TYPE_CHECKING:
    from gptexport.bench import Timing

DEFAULT_SHAPES = ((1, 1), (1, 128), (4, 256), (1, 1024))


@click.command(short_help="Time an artifact, beside eager PyTorch.")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--against", "checkpoint", metavar="CHECKPOINT", help="Time eager PyTorch in the same rounds.")
@click.option("--shapes", type=Shapes(), help="The (B,T) to time.  [default: 1x1,1x128,4x256,1x1024 up to block_size]")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU.  [default: all usable cores]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@output_options("bench")
def bench(
    output: Output,
    artifact: Path,
    checkpoint: str | None,
    shapes: list[tuple[int, int]] | None,
    rounds: int,
    threads: int | None,
    device: Literal["cpu", "cuda"],
) -> None:
    """Time full logits of ARTIFACT, and of CHECKPOINT in eager PyTorch, in interleaved rounds.

    \b
    Examples:
      gptexport bench gpt2/
      gptexport bench gpt2/ --against out/ckpt.pt --shapes 1x1,1x1024

    The session writes into one buffer that is used again (`out=`). Ratios are medians over rounds: absolute times
    drift with the machine.
    """
    import numpy as np
    from gptexport_runtime import load

    from gptexport.bench import Candidate, Ids, measure

    with load(artifact, device=device, threads=threads) as session:
        longest = session.config.block_size or 1024
        grid = list(dict.fromkeys((B, min(T, longest)) for B, T in shapes or DEFAULT_SHAPES))
        buffers = {shape: np.empty((*shape, session.config.vocab_size), np.float32) for shape in grid}

        def run_session(ids: Ids) -> object:
            return session.logits(ids, out=buffers[ids.shape])

        candidates: dict[str, Candidate] = {"gptexport": run_session}
        config = None
        if checkpoint is not None:
            import torch

            from gptexport.checkpoints import load_checkpoint

            torch.set_num_threads(session.threads)
            loaded = load_checkpoint(checkpoint)
            config = loaded.config

            def run_eager(ids: Ids) -> object:
                with torch.inference_mode():
                    return loaded.model(torch.from_numpy(ids))

            candidates["eager"] = run_eager
        baseline = "eager" if checkpoint is not None else "gptexport"
        vocab_size = session.config.vocab_size
        timings = measure(
            candidates,
            grid,
            vocab_size=vocab_size,
            baseline=baseline,
            rounds=rounds,
            config=config,
            progress=output.step,
        )
        data = {"ok": True, "threads": session.threads, "device": session.device, "rounds": rounds}
    output.result({**data, "timings": [asdict(timing) for timing in timings]}, timing_table(timings, baseline))


def timing_table(timings: list[Timing], baseline: str) -> str:
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
        )
        for t in timings
    ]
    return table(rows, ("B×T", "", "median ms", "fastest", f"× {baseline}", "tokens/s", "of sgemm"))
