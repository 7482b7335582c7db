"""`gptexport score`: how likely a model finds every token of a corpus."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import DEFAULT_DEVICE, DEVICES, Name, OutputPath
from gptexport.cli.output import Output, facts, output_options, table

if TYPE_CHECKING:
    from gptexport.score import Progress

EVERY = 5.0  # seconds between two lines of progress


@click.command(short_help="Score a corpus: log-probs, perplexity, bits per byte.")
@click.argument("artifact", metavar="BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", "out", type=OutputPath(), required=True, help="Folder to write, or to go on with.")
@click.option("--compare", type=click.Path(exists=True, path_type=Path), metavar="OTHER", help="Score by OTHER too.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=1, min_open=True),
    default=1.005,
    show_default=True,
    help="With --compare: documents whose perplexities are more than so many times apart are named.",
)
@click.option("--stride", type=click.IntRange(min=1), help="Tokens from window to window.  [default: block_size / 2]")
@click.option("--logprobs", is_flag=True, help="Write the log-prob of every token too.")
@click.option("--lines", is_flag=True, help="Each line of a .txt is a document.")
@click.option("--field", help="What holds text or ids in JSONL and Parquet.  [default: text, ids, input_ids or tokens]")
@click.option("--split-at", type=click.IntRange(min=0), metavar="ID", help="Documents of token files begin at this id.")
@click.option(
    "--begin-with",
    type=click.IntRange(min=0),
    metavar="ID",
    help="Put this id before every document: its first token is scored too.",
)
@click.option("--tokenizer", help="Tokenizer of texts: bytes, gpt2, or a file.  [default: the bundle's own]")
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens to feed at once.  [default: measured]")
@click.option(
    "--shard-tokens",
    type=click.IntRange(min=1),
    default=1 << 18,
    show_default=True,
    help="Tokens of a part that is written at once.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads.  [default: all usable cores]")
@click.option(
    "--device", type=Name(DEVICES), default=DEFAULT_DEVICE, show_default=True, help="Device that runs the bundle."
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Score by Ray's actors: started here, or those of the cluster at ADDRESS.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Actors of --ray.  [default: all CPUs / threads]")
@click.option("--gpus", type=click.FloatRange(min=0), default=0, help="GPUs of each actor of --ray.")
@click.option("--force", is_flag=True, help="Begin anew what was begun with other settings.")
@output_options("score")
def score(
    output: Output,
    artifact: Path,
    files: tuple[Path, ...],
    out: Path,
    lines: bool,
    field: str | None,
    split_at: int | None,
    begin_with: int | None,
    tokenizer: str | None,
    logprobs: bool,
    force: bool,
    ray: str | None,
    workers: int | None,
    gpus: float,
    **options: Any,
) -> None:
    """Score every token of FILES with BUNDLE into a folder of Parquet files.

    \b
    Examples:
      gptexport score gpt2/ corpus.jsonl.zst -o scores/              text, with the bundle's tokenizer
      gptexport score gpt2/ val.bin --split-at 50256 -o scores/      a token file of many documents
      gptexport score gpt2/ lines.txt --lines --logprobs -o scores/  a line each, every log-prob
      gptexport score gpt2/ val.bin -o scores/ --compare gpt2-int8/  which documents part?
      gptexport score gpt2/ val.bin -o scores/ --threads 1 --ray     an actor a core

    \b
    FILES: .txt (a document each), .jsonl and .parquet (text or ids), .bin (nanoGPT, llm.c), .npy
    (build-nanogpt); .txt, .jsonl, .bin and .npy also with .gz or .zst. A document longer than block_size is cut
    into windows that begin --stride tokens apart; each token is scored once, in the first that
    holds it. Run again after a kill, it goes on: the same files come out.
    """
    from gptexport.score import Asked, Reading, score_corpus
    from gptexport.score.on_ray import Fleet
    from gptexport.tokenizers import tokenizer_for

    reading = Reading(lines=lines, field=field, split_at=split_at, begin_with=begin_with)
    asked = Asked(artifact=artifact, files=files, out=out, reading=reading, keep_logprobs=logprobs, **options)
    words = tokenizer_for(artifact, tokenizer, needed=False)
    meter = _Meter(output)
    fleet = Fleet(address=ray, workers=workers, gpus=gpus) if ray is not None else None
    try:
        totals = score_corpus(asked, words, force=force, run=fleet, step=output.step, progress=meter)
    except KeyboardInterrupt:
        raise click.Abort("what was scored stays: run the same command again to go on.") from None
    spent = {"seconds": meter.seconds, "computed": meter.computed, "shards": meter.shards, "found": meter.found}
    output.result({"ok": True, "out": str(out), **totals, **spent}, _text(totals))


class _Meter:
    """Says how fast it is and how long it will take."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._began = self._said = time.monotonic()
        self._skipped = 0  # bytes of input that earlier runs have done
        self.shards = self.found = self.computed = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, now: Progress) -> None:
        if now.computed == 0:  # what is there already takes no time, and tells nothing of what is left
            self._skipped = now.read
            self._began = time.monotonic()
        self.shards, self.found, self.computed = now.shards, now.found, now.computed
        if now.computed and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            done = max(now.read - self._skipped, 1)
            left = (now.size - now.read) * self.seconds / done
            self._output.step(
                f"{100 * now.read / max(now.size, 1):.0f} %, {now.shards} parts, "
                f"{now.scored / self.seconds:,.0f} tokens a second, {_time(left)} left"
            )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _text(totals: dict[str, Any]) -> str:
    found = facts(
        [
            ("documents", f"{totals['documents']:,}"),
            ("tokens scored", f"{totals['tokens']:,}"),
            ("nll", f"{totals['nll']:,.3f} nats"),
            ("perplexity", _number(totals["perplexity"])),
            ("bits per byte", _number(totals["bits_per_byte"])),
        ]
    )
    if "compared" not in totals:
        return found
    other, compared = totals["other"], totals["compared"]
    apart = [(row["name"], f"{row['ratio']:.6g}") for row in compared["farthest"]]
    lines = [
        found,
        f"\nThe other's perplexity is {_number(other['perplexity'])}. {compared['parted']:,} of "
        f"{totals['documents']:,} documents have perplexities more than {compared['tolerance']:g} times apart.",
    ]
    return "\n".join([*lines, table(apart, ("document", "ratio"))] if apart else lines)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
