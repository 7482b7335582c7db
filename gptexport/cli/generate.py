"""`gptexport generate`: text from a bundle, as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gptexport.cli.options import Ids
from gptexport.cli.output import Output, output_options

if TYPE_CHECKING:
    from gptexport_runtime import Session
    from gptexport_runtime.text import Tokenizer


@click.command(short_help="Generate text from a bundle.")
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", help="Text to go on from; - reads it from stdin.")
@click.option("--prompt-ids", type=Ids(), metavar="1,2,3", help="Token ids to go on from.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="[default: until block_size]")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0: the most likely token.")
@click.option("--top-k", type=click.IntRange(min=1), help="Of the k most likely tokens.")
@click.option("--top-p", type=float, help="Of the fewest tokens with this probability together.")
@click.option("--min-p", type=float, help="Of tokens this probable relative to the most likely.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first sample.")
@click.option("--stop", type=click.IntRange(min=0), multiple=True, metavar="ID", help="Token ids that end the text.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Continuations of the prompt."
)
@click.option("--slide", is_flag=True, help="Go on past block_size, from the last half of the text.")
@click.option("--tokenizer", help="bytes, gpt2, a tokenizer.json or meta.pkl.  [default: the bundle's own]")
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU.  [default: all usable cores]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@output_options("generate")
def generate(
    output: Output,
    bundle: Path,
    prompt: str | None,
    prompt_ids: list[int] | None,
    seed: int,
    samples: int,
    tokenizer: str | None,
    threads: int | None,
    device: Literal["cpu", "cuda"],
    **options: Any,
) -> None:
    """Continue a prompt with BUNDLE, streamed to stdout.

    \b
    Examples:
      gptexport generate gpt2/ --prompt "Once upon a time" --temperature 0.8 --top-p 0.95
      gptexport generate gpt2/ --prompt "def main(" --temperature 0 --max-new-tokens 100
      gptexport generate gpt2/ --prompt - --samples 4 --seed 7 < story.txt
      gptexport generate gpt2/ --prompt-ids 15496,11 --json

    One seed gives one text: sample n has seed + n. Text needs the bundle's tokenizer, or --tokenizer.
    """
    if (prompt is None) == (prompt_ids is None):
        raise click.UsageError("Pass either --prompt or --prompt-ids.")
    from gptexport_runtime import load

    with load(bundle, device=device, threads=threads) as session:
        words = _tokenizer(bundle, tokenizer, session, needed=prompt is not None)
        ids = prompt_ids if prompt_ids is not None else _encode(prompt or "", words)
        began = time.perf_counter()
        steps = _steps(session, ids, samples, seed, options)
        show = not output.as_json and samples == 1
        texts = _print_as_it_comes(steps, output, words) if show else _collect(steps, samples)
        seconds = time.perf_counter() - began
    count = sum(map(len, texts))
    told = [words.decode(text) if words else " ".join(map(str, text)) for text in texts]
    if not output.as_json and not show:
        for number, text in enumerate(told):
            output.stdout.write(f"--- seed {seed + number} ---\n{text}\n")
    output.step(f"{count} tokens in {seconds:.2f} s, {count / seconds:,.1f} a second, the prompt's {len(ids)} included")
    if output.as_json:
        rows = [
            {"seed": seed + number, "ids": text, "text": told[number] if words else None}
            for number, text in enumerate(texts)
        ]
        output.result({"ok": True, "prompt_ids": ids, "samples": rows, "seconds": seconds}, "")


def _tokenizer(bundle: Path, name: str | None, session: Session, *, needed: bool) -> Tokenizer | None:
    """The one asked for, or the bundle's. One that only shows what comes may be missing, or not be installed."""
    from gptexport_runtime import BackendUnavailableError, InputError
    from gptexport_runtime.text import bundle_tokenizer

    from gptexport.tokenizers import load_tokenizer

    if name is not None:
        return load_tokenizer(name)
    try:
        found = bundle_tokenizer(bundle)
    except BackendUnavailableError:
        if needed:
            raise
        return None
    if found is None and needed:
        raise InputError(
            f"{bundle} carries no tokenizer, so --prompt cannot be read. Pass --tokenizer bytes, gpt2 or a file; or "
            "--prompt-ids."
        )
    return found


def _encode(prompt: str, words: Tokenizer | None) -> list[int]:
    assert words is not None, "a text prompt needs one"
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise click.BadParameter("the prompt is empty; expected some text to go on from.", param_hint="--prompt")
    return words.encode(text)


def _steps(session: Session, ids: list[int], samples: int, seed: int, options: dict[str, Any]) -> Iterator[list[int]]:
    """Each step's token of every sample; the prompt is read once, whatever their number."""
    seeds = list(range(seed, seed + samples))
    stream = session.stream([ids], seed=seed, **options)  # checks everything, and computes nothing yet
    if samples == 1:
        yield from (step.tolist() for step in stream)
        return
    with session.cache() as prompt:
        session.generate([ids], max_new_tokens=1, temperature=0, slide=True, cache=prompt)
        with prompt.fork(samples) as cache:
            for step in session.stream([ids] * samples, seed=seeds, cache=cache, **options):
                yield step.tolist()


def _print_as_it_comes(steps: Iterator[list[int]], output: Output, words: Tokenizer | None) -> list[list[int]]:
    text = words.stream() if words else None
    ids: list[int] = []
    try:
        for (token,) in steps:
            if token < 0:
                continue
            ids.append(token)
            output.stdout.write(text.feed([token]) if text else f"{token} ")
            output.stdout.flush()
    finally:  # also where Ctrl-C ends it: what came stays
        output.stdout.write((text.end() if text else "") + "\n")
        output.stdout.flush()
    return [ids]


def _collect(steps: Iterator[list[int]], samples: int) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in range(samples)]
    for step in steps:
        for text, token in zip(texts, step, strict=True):
            if token >= 0:
                text.append(token)
    return texts
