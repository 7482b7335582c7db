"""`gptexport triton`: a model repository for NVIDIA Triton and KServe."""

from __future__ import annotations

from pathlib import Path

import click

from gptexport.cli.options import DEVICES, Name, OutputPath
from gptexport.cli.output import Output, output_options, table


class Lengths(click.ParamType[list[int]]):
    """`64,128`: lengths that rows are padded to."""

    name = "T,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        items = [item.strip() for item in str(value).split(",")]
        for item in items:
            if not (item.isascii() and item.isdecimal() and int(item)):
                self.fail(f"{item!r} is not a length; expected integers of 1 or more, such as 64,128.", param, ctx)
        return [int(item) for item in items]


@click.command(short_help="Write a model repository for Triton and KServe.")
@click.argument("artifact", metavar="BUNDLE|ENGINE", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", "out", type=OutputPath(), required=True, help="Folder to write; must not be there.")
@click.option("--name", default="gpt", show_default=True, help="What the models' names begin with.")
@click.option("--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="Most rows of a batch.")
@click.option(
    "--buckets", type=Lengths(), help="Lengths that clients pad to.  [default: block_size and its halves to 16]"
)
@click.option(
    "--queue-delay",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Microseconds that a request waits for others.",
)
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Instances of each model.")
@click.option("--streams", type=click.IntRange(min=1), default=4, show_default=True, help="Texts generated at once.")
@click.option("--response-cache", is_flag=True, help="Let Triton answer a request that it has seen from its cache.")
@click.option("--device", type=Name(DEVICES), help="Device that runs the models.  [default: the artifact's own]")
@output_options("triton")
def triton(
    output: Output,
    artifact: Path,
    out: Path,
    name: str,
    max_batch: int,
    buckets: list[int] | None,
    queue_delay: int,
    instances: int,
    streams: int,
    response_cache: bool,
    device: str | None,
) -> None:
    """Write a model repository of BUNDLE, or of a TensorRT ENGINE, for NVIDIA Triton.

    \b
    Examples:
      gptexport triton gpt2/ -o repository/
      gptexport triton gpt2/ -o repository/ --max-batch 32 --buckets 128,512,1024 --instances 2
      gptexport triton gpt2.engine -o repository/

    Each graph becomes a model that Triton runs and batches by itself; gpt_generate streams tokens by the runtime, in
    Triton's Python backend. KServe reads the same folder.
    """
    from gptexport.triton import Serving, write_repository
    from gptexport_runtime.backends.ort.providers import AUTO

    serving = Serving(
        name=name,
        max_batch=max_batch,
        buckets=buckets or (),
        queue_delay=queue_delay,
        instances=instances,
        streams=streams,
        response_cache=response_cache,
        device=device or AUTO,
    )
    configs = write_repository(artifact, out, serving)
    rows = [(model, str(out / model / "config.pbtxt")) for model in configs]
    output.result({"ok": True, "out": str(out), "models": list(configs)}, table(rows, ("model", "config")))
