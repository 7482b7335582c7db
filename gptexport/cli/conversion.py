"""What the commands that convert a checkpoint for other systems have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import F, Name, OutputPath, assumption_options
from gptexport.cli.output import Output

if TYPE_CHECKING:
    from gptexport.checkpoints import Checkpoint
    from gptexport.tokenizers import BundledTokenizer


def conversion_options(dtypes: Sequence[str], *, where: str, stored: str) -> Callable[[F], F]:
    """The checkpoint, where to write, and how. `where` and `stored` stand in the help."""

    def give(command: F) -> F:
        for option in reversed(
            (
                click.argument("checkpoint"),
                click.option("-o", "--out", required=True, type=OutputPath(), help=f"Where to write: {where}."),
                click.option("--dtype", type=Name([*dtypes]), default="float32", show_default=True, help=stored),
                click.option(
                    "--tokenizer",
                    metavar="NAME|FILE",
                    help="Tokenizer to write.  [default: the one beside the checkpoint]",
                ),
                click.option(
                    "--vocab-size",
                    type=click.IntRange(min=1),
                    help="Keep the first ids alone: without padding tokens.",
                ),
                assumption_options,
            )
        ):
            command = option(command)
        return command

    return give


def read_with_tokenizer(
    output: Output,
    checkpoint: str,
    tokenizer: str | None,
    vocab_size: int | None,
    assumed: Mapping[str, Any],
    block_size: int | None = None,
) -> tuple[Checkpoint, BundledTokenizer | None]:
    """The checkpoint, and the tokenizer that was named or found with it; what a person should know is told.

    Raises:
        CheckpointError: see `load_checkpoint`.
        TokenizerError: there is none of that name.
    """
    output.step(f"reading {checkpoint}")
    from gptexport.checkpoints import load_checkpoint
    from gptexport.tokenizers import found_with, tokenizer_to_bundle

    loaded = load_checkpoint(checkpoint, **assumed, vocab_size=vocab_size, block_size=block_size)
    words, found = (tokenizer_to_bundle(tokenizer), None) if tokenizer is not None else found_with(loaded)
    for note in (*loaded.notes, *([found] if found and words is None else [])):
        output.note(note)
    return loaded, words
