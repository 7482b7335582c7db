"""`gptexport inspect`: what is this file?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gptexport.cli.output import Output, output_options

EXIT_PROBLEMS = 1
EXIT_UNREADABLE = 5


@click.command(short_help="Say what a checkpoint, bundle, graph or engine is.")
@click.argument("path")
@click.option(
    "--verify",
    is_flag=True,
    help="Check the SHA-256 of a bundle's weights even if it has no parity verdict.",
)
@output_options("inspect")
@click.pass_context
def inspect(ctx: click.Context, output: Output, path: str, verify: bool) -> None:
    """Say what PATH is: a checkpoint, a bundle, an .onnx graph or an engine. Never executes anything in it.

    \b
    Examples:
      gptexport inspect out/ckpt.pt
      gptexport inspect gpt2/ --verify
      gptexport inspect gpt2/logits.onnx --json
      gptexport inspect gpt2.engine                without a GPU, and without TensorRT
    """
    from gptexport.artifacts import find
    from gptexport.cli.inspect_text import artifact_text, checkpoint_text

    artifact = find(Path(path))
    if artifact is not None:
        found = artifact.inspect(verify=verify)
        problems = list(found.problems)
        data = {"ok": not problems, "kind": artifact.kind, "path": path, **found.data, "problems": problems}
        output.result(data, artifact_text(artifact, found, verbose=output.verbose, verified=verify))
        if problems:
            ctx.exit(EXIT_PROBLEMS)
        return
    from gptexport.checkpoints import describe_checkpoint

    info = describe_checkpoint(path)
    data = {**asdict(info), "config": info.config.to_dict() if info.config else None}
    output.result({"ok": info.readable, "kind": "checkpoint", "path": path, **data}, checkpoint_text(info))
    if not info.readable:
        ctx.exit(EXIT_UNREADABLE)
