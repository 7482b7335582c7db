"""`gptexport trt`: a bundle or a graph becomes a TensorRT engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptexport.cli.engine_text import engine_text, gpus
from gptexport.cli.options import Name, OutputPath
from gptexport.cli.output import Output, output_options
from gptexport.errors import OptionError
from gptexport_runtime.artifact import ENGINE_SUFFIX, is_engine
from gptexport_runtime.contract.edition import EDITIONS

if TYPE_CHECKING:
    from gptexport.engine import Source
    from gptexport_runtime.contract.engine import Profile

Shapes = tuple[tuple[int, int], ...]


class Shape(click.ParamType[tuple[int, int]]):
    """`8x256`: one (B,T)."""

    name = "BxT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        B, _, T = str(value).partition("x")
        if not (B.isdecimal() and T.isdecimal() and int(B) and int(T)):
            self.fail(f"{value!r} is not a shape; expected BxT with both at least 1, such as 8x256.", param, ctx)
        return int(B), int(T)


@click.command(short_help="Build a TensorRT engine from an export.")
@click.argument("source", metavar="BUNDLE|MODEL.onnx", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", required=True, type=OutputPath(), help="Where to write: NAME.engine.")
@click.option(
    "--backend",
    type=Name(list(EDITIONS)),
    help="Edition of TensorRT that builds.  [default: what is installed and can build here]",
)
@click.option("--min", "low", type=Shape(), multiple=True, help="Smallest (B,T) of a profile.  [default: 1x1]")
@click.option("--opt", type=Shape(), multiple=True, help="The (B,T) that a profile is tuned for.  [default: 8x256]")
@click.option(
    "--max",
    "high",
    type=Shape(),
    multiple=True,
    help="Largest (B,T) of a profile.  [default: 8x1024, or the block_size]",
)
@click.option(
    "--lengths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of request lengths, from which the profiles are chosen.",
)
@click.option(
    "--buckets",
    type=click.IntRange(1, 8),
    default=3,
    show_default=True,
    help="Number of profiles chosen from --lengths.",
)
@click.option(
    "--compute-capability",
    "targets",
    multiple=True,
    metavar="X.Y",
    help="GPU to build for (TensorRT for RTX). Repeatable.",
)
@click.option("--tf32", is_flag=True, help="Allow TF32: float32 products round their operands to 10 bits.")
@click.option(
    "--workspace", type=click.IntRange(min=1), metavar="MB", help="Most scratch memory that one layer may use."
)
@click.option("--optimization-level", type=click.IntRange(0, 5), help="How long to search, 5 being longest (TensorRT).")
@click.option(
    "--timing-cache", type=OutputPath(dir_okay=False), help="File of kernel timings, read and written back (TensorRT)."
)
@click.option("--weight-streaming", is_flag=True, help="Allow weights to stay in host memory.")
@click.option("--refit", is_flag=True, help="Allow weights to be replaced later.")
@click.option("--version-compatible", is_flag=True, help="Allow newer versions to run it (TensorRT).")
@click.option("--hardware-compatible", is_flag=True, help="Allow every GPU since Ampere to run it (TensorRT).")
@click.option("--force", is_flag=True, help="Replace an existing engine.")
@output_options("trt")
def trt(
    output: Output,
    source: Path,
    out: Path,
    backend: str | None,
    low: Shapes,
    opt: Shapes,
    high: Shapes,
    lengths: Path | None,
    buckets: int,
    targets: tuple[str, ...],
    tf32: bool,
    workspace: int | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    weight_streaming: bool,
    refit: bool,
    version_compatible: bool,
    hardware_compatible: bool,
    force: bool,
) -> None:
    """Build a TensorRT engine from BUNDLE or MODEL.onnx, and OUT.engine.json that says what it is.

    \b
    Examples:
      gptexport trt gpt2/ -o gpt2.engine                                     for the GPU of this machine
      gptexport trt gpt2/ -o gpt2.engine --compute-capability 8.9 --compute-capability 12.0
      gptexport trt gpt2/ -o gpt2.engine --min 1x1 --opt 8x256 --max 8x1024
      gptexport trt gpt2/ -o gpt2.engine --max 8x128 --max 8x1024            two profiles
      gptexport trt gpt2/ -o gpt2.engine --lengths lengths.txt --max 8x1024  profiles that waste least

    \b
    The precision is the export's: gptexport onnx --dtype bfloat16. TensorRT builds on the GPU that
    will run the engine; TensorRT for RTX builds anywhere, for the GPUs that you name. An engine runs
    only with the version that built it and on such GPUs, which its sidecar records.
    """
    from gptexport.staging import check_output

    if not is_engine(out):
        raise click.BadParameter(f"{out} does not end in {ENGINE_SUFFIX}.", param_hint="-o")
    check_output(out, force=force)
    from gptexport.engine import BuildOptions, build_engine, choose_targets, open_library, open_source
    from gptexport.engine.edition import check_options

    with _options_as_usage():
        graph = open_source(source)
        profiles = _profiles(graph, low, opt, high, lengths, buckets)
        library = open_library(backend)
        options = BuildOptions(
            tf32=tf32,
            workspace=workspace,
            optimization_level=optimization_level,
            timing_cache=timing_cache,
            weight_streaming=weight_streaming,
            refit=refit,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        )
        check_options(library, options)
        chosen = choose_targets(library, list(targets))
        output.step(f"building for {', '.join(chosen)} with {library.edition} {library.version}")
        for profile in profiles:
            output.step(f"profile: {profile}, fastest at {'x'.join(map(str, profile.opt))}")
        with _bar(output) as progress:
            built = build_engine(
                library, graph, out, profiles=profiles, targets=chosen, options=options, force=force, progress=progress
            )
    for warning in built.warnings:
        output.note(warning)
    ran = f"compiled for {gpus(built.info)}; " + (
        "not run: no GPU here" if library.gpu is None else "not run yet: gptexport parity runs it"
    )
    output.result(
        {"ok": True, "path": str(out), "ran": False, "status": ran, "sidecar": asdict(built.info)},
        f"{engine_text(built.info)}\n\n{ran}\nnext: gptexport parity {out} --against CHECKPOINT, on such a GPU",
    )


def _profiles(
    graph: Source, low: Shapes, opt: Shapes, high: Shapes, lengths: Path | None, buckets: int
) -> tuple[Profile, ...]:
    from gptexport.engine.profiles import DEFAULT_MAX, DEFAULT_OPT, make_profiles, propose_profiles, read_lengths

    if lengths is None:
        return make_profiles(low, opt, high, block_size=graph.block_size)
    if low or len(opt) > 1 or len(high) > 1:
        raise OptionError("--lengths sets the profiles; of --min, --opt and --max it takes one --opt and one --max.")
    (whole,) = make_profiles(low, opt, high or [(DEFAULT_MAX[0], _longest(graph))], block_size=graph.block_size)
    return propose_profiles(
        read_lengths(lengths),
        opt_B=opt[0][0] if opt else min(DEFAULT_OPT[0], whole.max[0]),
        max_B=whole.max[0],
        block_size=whole.max[1],
        buckets=buckets,
    )


def _longest(graph: Source) -> int:
    from gptexport.engine.profiles import DEFAULT_MAX

    return graph.block_size or DEFAULT_MAX[1]


@contextmanager
def _options_as_usage() -> Iterator[None]:
    """An option that the library has not is a mistake of the command line: exit code 2."""
    try:
        yield
    except OptionError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def _bar(output: Output) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, on a terminal only."""
    stderr = sys.stderr
    if output.quiet or not stderr.isatty():
        yield lambda _phase, _done: None
        return
    steps = 1000
    output.still()
    with click.progressbar(length=steps, label="building", file=stderr, show_eta=False) as bar:

        def show(phase: str, done: float) -> None:
            bar.label = f"building: {phase}"[:40].ljust(40)
            bar.update(max(0, round(done * steps) - bar.pos))

        yield show
        bar.update(steps - bar.pos)
