"""`gptexport parity`: is the export the same model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import DEVICES, Name, OutputPath, Shapes, assumption_options, check_named
from gptexport.cli.output import Output, output_options
from gptexport.cli.parity_text import result_text

if TYPE_CHECKING:
    from gptexport.artifacts import Artifact
    from gptexport.parity.result import ParityResult
    from gptexport_runtime.text import Tokenizer

EXIT_PARITY_FAILED = 3


class Gate(click.ParamType[tuple[str, str]]):
    """`noise_ratio=3`."""

    name = "NAME=NUMBER"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        from gptexport.parity.verdict.gates import changed_gates
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
@click.option("--against", "checkpoint", metavar="CHECKPOINT", help="The checkpoint that it was exported from.")
@click.option("--shapes", type=Shapes(), help="The (B,T) shapes to compare at.  [default: a grid up to block_size]")
@click.option("--quick", is_flag=True, help="A first answer: two small shapes, without a search for the cause.")
@click.option(
    "--tokens",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Real text: token ids (.bin, .npy), or plain text if there is a tokenizer.",
)
@click.option(
    "--tokenizer",
    metavar="NAME|FILE",
    help="Tokenizer for plain text: bytes, gpt2, a tokenizer.json or a meta.pkl.  [default: the bundle's own]",
)
@assumption_options
@click.option("--block-size", type=click.IntRange(min=1), help="The longest sequence, if your own module does not say.")
@click.option(
    "--vocab-size",
    type=click.IntRange(min=1),
    help="The value used at export. Only needed for a single .onnx: a bundle records it.",
)
@click.option(
    "--device",
    type=Name(DEVICES),
    help="Device that runs the artifact.  [default: cpu; an engine: cuda]",
)
@click.option(
    "--graph",
    type=click.Path(exists=True, path_type=Path),
    help="The bundle or .onnx that an engine was built from.  [default: found beside it by its hash]",
)
@click.option("--gate", "gates", type=Gate(), multiple=True, help="Override a gate, e.g. noise_ratio=3. Repeatable.")
@click.option("--save", type=OutputPath(dir_okay=False), help="Save the measurements as JSON.")
@click.option("--report", type=OutputPath(dir_okay=False), help="Write an HTML report.")
@output_options("parity")
@click.pass_context
def parity(
    ctx: click.Context,
    /,
    output: Output,
    artifact: Path,
    checkpoint: str | None,
    shapes: list[tuple[int, int]] | None,
    quick: bool,
    tokens: Path | None,
    tokenizer: str | None,
    block_size: int | None,
    vocab_size: int | None,
    device: str | None,
    graph: Path | None,
    gates: tuple[tuple[str, str], ...],
    save: Path | None,
    report: Path | None,
    **assumed: Any,
) -> None:
    """Check ARTIFACT, a bundle, an .onnx or an .engine, against the CHECKPOINT it was exported from.

    \b
    Examples:
      gptexport parity gpt2/ --against out/ckpt.pt
      gptexport parity gpt2/ --against openai-community/gpt2 --shapes 1x1,3x17,1x1024
      gptexport parity gpt2/ --against out/ckpt.pt --tokens data/val.bin    on real text
      gptexport parity gpt2/ --against out/ckpt.pt --report parity.html --save parity.json
      gptexport parity gpt2.engine --against out/ckpt.pt --graph gpt2/      on a GPU, in three ways
      gptexport parity parity.json --gate noise_ratio=3    judge saved measurements, without the model

    \b
    The yardstick is the model's own rounding noise: the artifact and eager PyTorch in the same
    dtype are both compared with the model in float64, and the artifact may err at most twice as
    much as eager does. If it errs more, parity names the first wrong step and what it looks like.
    The verdict is stored in the bundle's manifest or the engine's sidecar, except with --quick or --gate.
    Exit code 0: the same model; 3: not the same.
    """
    from gptexport.parity.measure.measured import is_measured
    from gptexport.parity.measure.token_files import is_token_file, read_tokens
    from gptexport.tokenizers import tokenizer_for

    _check_outputs(save, report)
    plain_text = tokens is not None and not is_token_file(tokens)
    text_tokenizer = tokenizer_for(artifact, tokenizer, needed=plain_text)
    if checkpoint is None and not is_measured(artifact):
        raise click.UsageError("Missing option '--against': the checkpoint that ARTIFACT was exported from.")
    if checkpoint is None or is_measured(artifact):
        from gptexport.parity import judge_saved

        result = judge_saved(artifact, dict(gates))
    else:
        described = _describe(artifact, graph)
        output.step(f"reading {checkpoint}")
        from gptexport.parity import ShapeError, check_parity, load_for

        loaded = load_for(described, checkpoint, **assumed, vocab_size=vocab_size, block_size=block_size)
        try:
            result = check_parity(
                described,
                loaded,
                shapes=shapes,
                tokens=read_tokens(tokens, loaded.predicted_ids, text_tokenizer) if tokens else None,
                device=device,
                gates=dict(gates),
                quick=quick,
                source=checkpoint,
                progress=output.step,
            )
        except ShapeError as error:
            raise click.BadParameter(str(error), param_hint="--shapes") from error
    for note in result.notes:
        output.note(note)
    output.result({"ok": True, "artifact": str(artifact), **result.to_dict()}, result_text(result))
    _keep(output, result, save, report, text_tokenizer)
    if not result:
        ctx.exit(EXIT_PARITY_FAILED)


def _keep(
    output: Output, result: ParityResult, save: Path | None, report: Path | None, words: Tokenizer | None
) -> None:
    """Write what was asked for. The verdict has been said: a place that cannot be written costs a note."""
    from gptexport.errors import OutputError
    from gptexport.parity.report.page import write_report

    try:
        if save is not None:
            result.measured.save(save)
    except OutputError as error:
        output.note(f"not saved: {error}")
    try:
        if report is not None:
            write_report(report, result, words)
    except OutputError as error:
        output.note(f"no report: {error}")


def _describe(path: Path, graph: Path | None) -> Artifact:
    """The artifact; an engine as built from `graph`, where that is given."""
    from gptexport.artifacts import describe_artifact

    artifact = describe_artifact(path)
    if graph is None:
        return artifact
    built = artifact.built_from(graph)
    if built is None:
        raise click.UsageError(f"--graph applies to engines; {path} is not one.")
    return built


def _check_outputs(save: Path | None, report: Path | None) -> None:
    """Before the work, not after it; and nothing is replaced but what parity wrote."""
    from gptexport.parity.measure.measured import SAVED, is_measured
    from gptexport.parity.report.page import REPORT, is_report

    if save is not None and save.suffix != ".json":
        raise click.BadParameter(f"{save} does not end in .json, by which it is known again.", param_hint="--save")
    if report is not None and report.suffix not in (".html", ".htm"):
        raise click.BadParameter(f"{report} does not end in .html, as a browser expects.", param_hint="--report")
    check_named(save, "--save", is_measured, SAVED)
    check_named(report, "--report", is_report, REPORT)
