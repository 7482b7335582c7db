"""`gptexport parity`: is the export the same model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gptexport.cli.output import Output, output_options, table

if TYPE_CHECKING:
    from gptexport_runtime.contract import Manifest

    from gptexport.config import GPTConfig
    from gptexport.parity import Verdict

EXIT_PARITY_FAILED = 3


class Shapes(click.ParamType[list[tuple[int, int]]]):
    """`1x1,3x17`: a list of (B,T)."""

    name = "BxT,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[tuple[int, int]]:
        shapes = []
        for item in str(value).split(","):
            B, _, T = item.strip().partition("x")
            if not (B.isdecimal() and T.isdecimal() and int(B) and int(T)):
                self.fail(f"{item!r} is not a shape; expected BxT with both at least 1, such as 1x1,3x17.", param, ctx)
            shapes.append((int(B), int(T)))
        return shapes


@click.command(short_help="Check an export against its checkpoint.")
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--against", "checkpoint", required=True, metavar="CHECKPOINT", help="What it was exported from.")
@click.option("--shapes", type=Shapes(), help="The (B,T) to compare at.  [default: a grid up to block_size]")
@click.option(
    "--tokens", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Real text: .bin or .npy of ids."
)
@click.option(
    "--gelu", type=click.Choice(["tanh", "erf"]), help="What the training code used, where the checkpoint does not say."
)
@click.option(
    "--block-size", type=click.IntRange(min=1), help="Longest sequence, where a module of your own does not say."
)
@click.option("--vocab-size", type=click.IntRange(min=1), help="As at the export, for a lone .onnx; a bundle knows.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the artifact runs."
)
@output_options("parity")
@click.pass_context
def parity(
    ctx: click.Context,
    output: Output,
    artifact: Path,
    checkpoint: str,
    shapes: list[tuple[int, int]] | None,
    tokens: Path | None,
    gelu: str | None,
    vocab_size: int | None,
    block_size: int | None,
    device: Literal["cpu", "cuda"],
) -> None:
    """Check ARTIFACT, a bundle or an .onnx, against the CHECKPOINT it was exported from.

    \b
    Examples:
      gptexport parity gpt2/ --against out/ckpt.pt
      gptexport parity gpt2/ --against openai-community/gpt2 --shapes 1x1,3x17,1x1024
      gptexport parity gpt2/ --against out/ckpt.pt --tokens data/val.bin    on real text

    \b
    The yardstick is the model's own rounding noise: both the artifact and eager PyTorch in
    the same dtype are compared with the model in float64. The artifact may err at most twice
    as much as eager does. The verdict goes into the bundle's manifest.
    Exit code 0: the same model; 3: not the same.
    """
    from gptexport_runtime import load

    with load(artifact, device=device, verify=True) as session:
        output.step(f"reading {checkpoint}")
        from gptexport.checkpoints import load_checkpoint
        from gptexport.parity import check_parity, default_grid, read_tokens
        from gptexport.parity.record import record_verdict

        manifest = session.manifest
        exported = manifest.source.get("options", {}) if manifest else {}
        loaded = load_checkpoint(
            checkpoint,
            gelu=gelu,  # type: ignore[arg-type] # never the export's --gelu: a wrong one is what parity is there to find
            vocab_size=vocab_size or exported.get("vocab_size"),
            block_size=block_size or exported.get("block_size"),
        )
        too_long = [f"{B}x{T}" for B, T in shapes or [] if loaded.block_size < T]
        if too_long:
            raise click.BadParameter(
                f"{', '.join(too_long)}: T is beyond block_size {loaded.block_size}.", param_hint="--shapes"
            )
        verdict = check_parity(
            session,
            loaded,
            shapes or default_grid(loaded.block_size),
            dtype=manifest.dtype if manifest else "float32",
            tokens=read_tokens(tokens, loaded.vocab_size) if tokens else None,
            progress=output.step,
        )
        if manifest is not None:
            record_verdict(artifact if artifact.is_dir() else artifact.parent, manifest, verdict, loaded.sha256)
    output.result(
        {"ok": True, "artifact": str(artifact), **verdict.to_dict()},
        _text(verdict) + _hint(verdict, manifest, loaded.config),
    )
    if not verdict:
        ctx.exit(EXIT_PARITY_FAILED)


def _text(verdict: Verdict) -> str:
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
    if verdict.passed:
        parts.append(
            f"PASS  the same model in {verdict.dtype}: at worst {verdict.noise_ratio:.2f} × eager's own rounding noise."
        )
    else:
        parts.append("\n".join(["FAIL  not the same model:", *(f"  {reason}" for reason in verdict.reasons)]))
    return "\n\n".join(parts)


def _hint(verdict: Verdict, manifest: Manifest | None, config: GPTConfig | None) -> str:
    gelu = config.gelu if config else None
    exported = manifest.model.get("gelu") if manifest else None
    if verdict.passed or exported is None or gelu is None or exported == gelu:
        return ""
    return (
        f"\n\nThe bundle was exported with GELU {exported}; this checkpoint's is taken to be {gelu}. "
        f"If it was trained with {exported}, pass --gelu {exported} here too."
    )
