"""`gptexport parity`: is the export the same model?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gptexport.cli.options import OutputPath, Shapes, check_named
from gptexport.cli.output import Output, output_options
from gptexport.cli.parity_text import hint_text, verdict_text
from gptexport_runtime.engine_file import ENGINE_SUFFIX, EngineInfo

if TYPE_CHECKING:
    from gptexport.checkpoints import Checkpoint
    from gptexport.config import Gelu

EXIT_PARITY_FAILED = 3


class Gate(click.ParamType[tuple[str, str]]):
    """`noise_ratio=3`."""

    name = "NAME=NUMBER"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        from gptexport.parity.gates import changed_gates
        from gptexport.precision import Gates
        from gptexport_runtime import InputError

        name, sign, number = str(value).partition("=")
        if not sign:
            self.fail(f"{value!r} is not a gate; expected NAME=NUMBER, such as noise_ratio=3.", param, ctx)
        try:
            changed_gates(Gates(), {name: number})
        except InputError as error:
            self.fail(str(error), param, ctx)
        return name, number


@click.command(short_help="Check an export against its checkpoint.")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--against", "checkpoint", metavar="CHECKPOINT", help="What it was exported from.")
@click.option("--shapes", type=Shapes(), help="The (B,T) to compare at.  [default: a grid up to block_size]")
@click.option("--quick", is_flag=True, help="A first answer: two small shapes, and no search for whom to blame.")
@click.option(
    "--tokens",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Real text: .bin or .npy of ids, or plain text where there is a tokenizer.",
)
@click.option(
    "--tokenizer",
    metavar="NAME|FILE",
    help="bytes, gpt2, a tokenizer.json, or nanoGPT's meta.pkl.  [default: the bundle's own]",
)
@click.option(
    "--gelu", type=click.Choice(["tanh", "erf"]), help="What the training code used, where the checkpoint does not say."
)
@click.option(
    "--block-size", type=click.IntRange(min=1), help="Longest sequence, where a module of your own does not say."
)
@click.option("--vocab-size", type=click.IntRange(min=1), help="As at the export, for a lone .onnx; a bundle knows.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Where the artifact runs.  [default: cpu; an engine: cuda]"
)
@click.option(
    "--graph",
    "origin",
    type=click.Path(exists=True, path_type=Path),
    help="Of an engine: the bundle or .onnx it was built from.  [default: found beside it by its hash]",
)
@click.option("--gate", "gates", type=Gate(), multiple=True, help="Another gate than the dtype's own. Repeatable.")
@click.option("--save", type=OutputPath(dir_okay=False), help="Keep what was measured, as JSON.")
@click.option("--report", type=OutputPath(dir_okay=False), help="Write one HTML file of it all.")
@output_options("parity")
@click.pass_context
def parity(
    ctx: click.Context,
    output: Output,
    artifact: Path,
    checkpoint: str | None,
    shapes: list[tuple[int, int]] | None,
    quick: bool,
    tokens: Path | None,
    tokenizer: str | None,
    gelu: Gelu | None,
    block_size: int | None,
    vocab_size: int | None,
    device: Literal["cpu", "cuda"] | None,
    origin: Path | None,
    gates: tuple[tuple[str, str], ...],
    save: Path | None,
    report: Path | None,
) -> None:
    """Check ARTIFACT, a bundle, an .onnx or an .engine, against the CHECKPOINT it was exported from.

    \b
    Examples:
      gptexport parity gpt2/ --against out/ckpt.pt
      gptexport parity gpt2/ --against openai-community/gpt2 --shapes 1x1,3x17,1x1024
      gptexport parity gpt2/ --against out/ckpt.pt --tokens data/val.bin    on real text
      gptexport parity gpt2/ --against out/ckpt.pt --report parity.html --save parity.json
      gptexport parity gpt2.engine --against out/ckpt.pt --graph gpt2/      on a GPU; three ways
      gptexport parity parity.json --gate noise_ratio=3    judge what was saved, without the model

    \b
    The yardstick is the model's own rounding noise: both the artifact and eager PyTorch in
    the same dtype are compared with the model in float64. The artifact may err at most twice
    as much as eager does. Where it errs more, the first wrong step is named, with what it looks
    like. The verdict goes into the bundle's manifest or the engine's sidecar, unless it is that of --quick or --gate.
    Exit code 0: the same model; 3: not the same.
    """
    from gptexport.parity.gates import GATES, changed_gates
    from gptexport.parity.measured import is_measured, load_measured
    from gptexport.parity.token_files import is_token_file
    from gptexport.tokenizers import tokenizer_for

    _check_outputs(save, report)
    plain_text = tokens is not None and not is_token_file(tokens)
    words = tokenizer_for(artifact, tokenizer, needed=plain_text)
    diagnosis, hint = None, ""
    if is_measured(artifact):
        measured = load_measured(artifact)
        verdict = measured.judge(changed_gates(GATES[measured.gates], dict(gates)))
    elif checkpoint is None:
        raise click.UsageError("Missing option '--against': the checkpoint that ARTIFACT was exported from.")
    else:
        from gptexport_runtime import load

        is_engine = artifact.suffix == ENGINE_SUFFIX
        if origin is not None and not is_engine:
            raise click.UsageError(f"--graph is of an engine; {artifact} is none.")
        device = device or ("cuda" if is_engine else "cpu")
        with load(artifact, device=device, verify=True) as session:
            output.step(f"reading {checkpoint}")
            from gptexport.checkpoints import load_checkpoint
            from gptexport.parity import default_grid, diagnose, measure_parity, quick_grid, read_tokens
            from gptexport.parity.heads import measure_heads
            from gptexport.parity.lone import precision_of
            from gptexport.parity.origin import find_origin
            from gptexport.parity.record import environment, record_verdict
            from gptexport.parity.tokens import grid_within

            manifest, engine = session.manifest, session.engine
            graph = _graph_of(artifact) if engine is None else find_origin(artifact, engine, origin)
            described = manifest or engine
            precision = described or precision_of(_graph_of(artifact))
            exported = described.source.get("options", {}) if described else {}
            loaded = load_checkpoint(
                checkpoint,
                gelu=gelu,  # never the export's --gelu: a wrong one is what parity is there to find
                vocab_size=vocab_size or exported.get("vocab_size"),
                block_size=block_size or exported.get("block_size"),
            )
            _check_shapes(shapes, loaded, engine)
            grid = shapes or (quick_grid if quick else default_grid)(loaded.block_size)
            if engine is not None:
                grid = shapes or grid_within(grid, engine.profiles)
            ids = read_tokens(tokens, loaded.predicted_ids, words) if tokens else None
            measured = measure_parity(
                session,
                loaded,
                grid,
                dtype=precision.dtype,
                gates=None if isinstance(precision, EngineInfo) else precision.quantize,
                graph=graph,
                tokens=ids,
                progress=output.step,
            )
            if manifest is not None and not quick:
                output.step("comparing the other graphs of the bundle")
                with load(artifact, device=device, prepack=False) as lean:  # each graph of a session has its own copy
                    measured = measure_heads(measured, lean, tokens=ids)
            measured = replace(measured, environment=environment(artifact, checkpoint, session, loaded.sha256))
            verdict = measured.judge(changed_gates(GATES[measured.gates], dict(gates)))
            if not (quick and verdict):
                diagnosis = diagnose(session, loaded, graph, verdict, tokens=ids, blame=not quick, progress=output.step)
            if not quick and not gates:
                record_verdict(artifact, session, verdict, loaded.sha256)
            hint = hint_text(verdict, described, loaded.config)
    if save is not None:
        measured.save(save)
    if report is not None:
        from gptexport.parity.report import write_report

        write_report(report, measured, verdict, diagnosis, words)
    output.result(
        {"ok": True, "artifact": str(artifact), **verdict.to_dict(), **(diagnosis.to_dict() if diagnosis else {})},
        verdict_text(verdict, diagnosis, real_text=measured.real_text) + hint,
    )
    if not verdict:
        ctx.exit(EXIT_PARITY_FAILED)


def _check_outputs(save: Path | None, report: Path | None) -> None:
    """Before the work, not after it; and nothing is replaced but what parity wrote."""
    from gptexport.parity.measured import SAVED, is_measured
    from gptexport.parity.report import REPORT, is_report

    if save is not None and save.suffix != ".json":
        raise click.BadParameter(f"{save} does not end in .json, by which it is known again.", param_hint="--save")
    if report is not None and report.suffix not in (".html", ".htm"):
        raise click.BadParameter(f"{report} does not end in .html, as a browser expects.", param_hint="--report")
    check_named(save, "--save", is_measured, SAVED)
    check_named(report, "--report", is_report, REPORT)


def _graph_of(artifact: Path) -> Path:
    """The .onnx that a session of the artifact runs."""
    from gptexport_runtime.bundle import open_artifact

    return open_artifact(artifact).logits


def _check_shapes(shapes: list[tuple[int, int]] | None, loaded: Checkpoint, engine: EngineInfo | None) -> None:
    too_long = [f"{B}x{T}" for B, T in shapes or [] if loaded.block_size < T]
    if too_long:
        raise click.BadParameter(
            f"{', '.join(too_long)}: T is beyond block_size {loaded.block_size}.", param_hint="--shapes"
        )
    profiles = engine.profiles if engine else ()
    outside = [f"{B}x{T}" for B, T in shapes or [] if profiles and not any(p.takes(B, T) for p in profiles)]
    if outside:
        raise click.BadParameter(
            f"{', '.join(outside)}: this engine takes {'; or '.join(map(str, profiles))}.", param_hint="--shapes"
        )
