"""`gptexport generate`: text from a bundle, streamed."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import DEFAULT_DEVICE, DEVICES, Ids, Name, Stop
from gptexport.cli.output import Output, output_options

if TYPE_CHECKING:
    from gptexport_runtime import Session
    from gptexport_runtime.text import Tokenizer

MOST_SAMPLES = 4096  # each has a cache of its own
Steps = Generator[list[int], None, None]  # each step's token of every sample; below 0 where it has ended


@click.command(short_help="Generate text from a bundle.")
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", help="Text to continue; - reads it from stdin.")
@click.option("--prompt-ids", type=Ids(), metavar="1,2,3", help="Token ids to continue.")
@click.option("--chat", is_flag=True, help="Answer --prompt as a message, in the chat format of the checkpoint.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="Most tokens to generate.  [default: until block_size]"
)
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="Sampling temperature; 0 always takes the most likely token.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from the K most likely tokens.")
@click.option("--top-p", type=float, help="Sample from the fewest tokens that together have this probability.")
@click.option("--min-p", type=float, help="Keep tokens at least this probable relative to the likeliest.")
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Above 1, tokens that occurred are less likely.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the first sample.")
@click.option(
    "--stop",
    type=Stop(),
    multiple=True,
    metavar="ID|TEXT",
    help="Stop at this id or text, which is not printed, as at the checkpoint's own end of a text. Repeatable.",
)
@click.option("--ignore-eos", is_flag=True, help="Continue past the end of a text that the checkpoint names.")
@click.option(
    "--samples",
    type=click.IntRange(1, MOST_SAMPLES),
    default=1,
    show_default=True,
    help=f"Number of continuations, at most {MOST_SAMPLES}.",
)
@click.option("--slide", is_flag=True, help="Continue past block_size, from the last half of the text.")
@click.option("--tokenizer", help="Tokenizer: bytes, gpt2, or a file.  [default: the bundle's own]")
@click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads.  [default: all usable cores]")
@click.option(
    "--device", type=Name(DEVICES), default=DEFAULT_DEVICE, show_default=True, help="Device that runs the bundle."
)
@output_options("generate")
def generate(
    output: Output,
    bundle: Path,
    chat: bool,
    ignore_eos: bool,
    prompt: str | None,
    prompt_ids: list[int] | None,
    seed: int,
    stop: tuple[int | str, ...],
    samples: int,
    tokenizer: str | None,
    threads: int | None,
    device: str,
    **options: Any,
) -> None:
    """Continue a prompt with BUNDLE, streamed to stdout.

    \b
    Examples:
      gptexport generate gpt2/ --prompt "Once upon a time" --temperature 0.8 --top-p 0.95
      gptexport generate gpt2/ --prompt "def main(" --temperature 0 --max-new-tokens 100
      gptexport generate gpt2/ --prompt "Q: Why?" --stop 50256 --stop "Q:"    an id, or a text
      gptexport generate nanochat/ --chat --prompt "Why is the sky blue?"
      gptexport generate gpt2/ --prompt - --samples 4 --seed 7 < story.txt
      gptexport generate gpt2/ --prompt-ids 15496,11 --json

    One seed gives one text: sample n has seed + n. Text needs the bundle's tokenizer, or --tokenizer.
    """
    if (prompt is None) == (prompt_ids is None):
        raise click.UsageError("Pass either --prompt or --prompt-ids.")
    if chat and prompt is None:
        raise click.UsageError("--chat answers a message: pass it as --prompt.")
    if options["slide"] and options["max_new_tokens"] is None:
        raise click.UsageError("--slide has no end of its own: pass --max-new-tokens too.")
    from gptexport_runtime import load

    stop_texts = [one for one in stop if isinstance(one, str)]
    show = not output.as_json and samples == 1
    with load(bundle, device=device, threads=threads) as session:
        words = _tokenizer(output, bundle, tokenizer, session, prompt, stop_texts)
        stop_ids = _stop_ids(output, session, words, stop, ignore_eos)
        ids = prompt_ids if prompt_ids is not None else _ids_of(prompt or "", words, session, chat=chat)
        if session.why_slow is not None:
            output.note(f"slow: the whole text is computed again for every token, because {session.why_slow}")
        if show and prompt is not None:
            output.prompt(words.decode(ids) if words else prompt)
        began = time.perf_counter()
        texts = [_Continuation(words, stop_texts) for _ in range(samples)]
        steps = _steps(session, ids, samples, seed, stop=stop_ids, **options)
        try:
            with closing(steps):
                _run(steps, texts, output if show else None)
        except KeyboardInterrupt:  # what came stays
            if output.as_json:
                raise
            _finish(texts, output, seed, show)
            raise click.Abort("what had come was printed.") from None
        seconds = time.perf_counter() - began
    _finish(texts, output, seed, show)
    count = sum(len(text.ids) for text in texts)
    speed = f"{count / seconds:,.0f} a second"
    output.step(f"{count} new tokens in {seconds:.2f} s, reading the prompt of {len(ids)} included: {speed}")
    if output.as_json:
        rows = [
            {"seed": seed + n, "ids": text.ids, "text": text.text if words else None} for n, text in enumerate(texts)
        ]
        output.result({"ok": True, "prompt_ids": ids, "samples": rows, "seconds": seconds}, "")


class _Continuation:
    """What one sample has got so far. With a text to stop at, `ids` holds the tokens of that text too."""

    def __init__(self, words: Tokenizer | None, stop_texts: Sequence[str]) -> None:
        from gptexport_runtime.text import StoppingStream

        self.ids: list[int] = []
        self.text = ""
        self._stream = StoppingStream(words.stream(), stop_texts) if words else None

    @property
    def stopped(self) -> bool:
        return self._stream is not None and self._stream.stopped

    def take(self, token: int) -> str:
        """Add a token; returns the text that it makes certain. Without a tokenizer that is the id."""
        self.ids.append(token)
        return self._add(self._stream.feed([token]) if self._stream else f"{' ' * bool(self.text)}{token}")

    def end(self) -> str:
        return self._add(self._stream.end() if self._stream else "")

    def _add(self, new: str) -> str:
        self.text += new
        return new


def _run(steps: Steps, texts: list[_Continuation], output: Output | None) -> None:
    """Until every sample has ended; with an output its new text is printed as it comes."""
    for step in steps:
        for text, token in zip(texts, step, strict=True):
            if token < 0 or text.stopped:
                continue
            new = text.take(token)
            if output is not None:
                output.text(new)
        if all(text.stopped for text in texts):
            return


def _finish(texts: list[_Continuation], output: Output, seed: int, shown: bool) -> None:
    """End every text, and print what has not been: the last characters of the one that was `shown`, or all of them."""
    for number, text in enumerate(texts):
        left = text.end()
        if not output.as_json:
            output.text(f"{left}\n" if shown else f"--- seed {seed + number} ---\n{text.text}\n")


def _tokenizer(
    output: Output, bundle: Path, name: str | None, session: Session, prompt: str | None, stop_texts: list[str]
) -> Tokenizer | None:
    """The one asked for, or the bundle's. One that only shows what comes may be missing, or not be installed."""
    from gptexport.tokenizers import tokenizer_for
    from gptexport_runtime import InputError

    needed = [option for option, text in (("--prompt", prompt is not None), ("--stop", stop_texts)) if text]
    words = tokenizer_for(bundle, name, needed=bool(needed))
    if words is None and needed:
        raise InputError(
            f"{bundle} carries no tokenizer, so the text of {' and '.join(needed)} cannot be read. Pass --tokenizer "
            "with the one that the model was trained with (a tokenizer.json, vocab.json, tokenizer.model or meta.pkl; "
            "bytes; gpt2 if it is GPT-2's); or ids: --prompt-ids 1,2,3, --stop 4."
        )
    if words is None:
        output.note(f"{bundle} carries no tokenizer that can be read here: ids are shown, not text")
    elif words.size > (V := max(session.config.vocab_size, session.config.ids)):
        raise InputError(
            f"the tokenizer {name or words.name} has {words.size} ids, the model's vocabulary {V}: it is not this "
            "model's."
        )
    return words


def _stop_ids(
    output: Output, session: Session, words: Tokenizer | None, stop: Sequence[int | str], ignore_eos: bool
) -> list[int]:
    """The ids that end a sample: those asked for, and the checkpoint's own, which is said."""
    own = [] if ignore_eos else list(session.eos_token_ids)
    if own:
        shown = ", ".join(f"{words.show(i)} (id {i})" if words and i < words.size else f"id {i}" for i in own)
        output.step(f"ends at {shown}, as the checkpoint says; --ignore-eos goes on")
    return [*own, *(one for one in stop if isinstance(one, int))]


def _ids_of(prompt: str, words: Tokenizer | None, session: Session, *, chat: bool) -> list[int]:
    """A text prompt's ids, and those that the checkpoint says stand around it."""
    from gptexport_runtime import InputError
    from gptexport_runtime.contract.manifest import TextEntry

    text = session.manifest.text if session.manifest is not None else TextEntry()
    if not chat:
        return [*text.before_prompt, *_encode(prompt, words)]
    if not text.before_message:
        raise InputError(
            "the bundle has no chat format: of what gptexport reads, nanochat's checkpoints with their tokenizer.pkl "
            "do. Leave out --chat, and write the prompt as the model was trained on it."
        )
    return [*text.before_message, *_encode(prompt, words), *text.after_message]


def _encode(prompt: str, words: Tokenizer | None) -> list[int]:
    assert words is not None, "a text prompt needs one"
    data = sys.stdin.buffer.read() if prompt == "-" else prompt.encode("utf-8", "surrogateescape")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"the prompt is not UTF-8: {error}.", param_hint="--prompt") from error
    ids = words.encode(text)
    if not ids:
        raise click.BadParameter("the prompt is empty; expected some text to go on from.", param_hint="--prompt")
    return ids


def _steps(session: Session, ids: list[int], samples: int, seed: int, **options: Any) -> Steps:
    """Checks everything at once; the prompt is read once, whatever the number of samples."""
    alone = session.stream([ids], seed=seed, **options)  # computes nothing yet
    if samples == 1:
        return (step.tolist() for step in alone)
    return _forked_steps(session, ids, list(range(seed, seed + samples)), options)


def _forked_steps(session: Session, ids: list[int], seeds: list[int], options: dict[str, Any]) -> Steps:
    with session.cache() as prompt:
        session.generate([ids], max_new_tokens=1, temperature=0, slide=True, cache=prompt)
        with prompt.fork(len(seeds)) as cache:
            for step in session.stream([ids] * len(seeds), seed=seeds, cache=cache, **options):
                yield step.tolist()
