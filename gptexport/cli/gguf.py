"""`gptexport gguf`: a checkpoint becomes a file that llama.cpp reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptexport.cli.options import Name, OutputPath, assumption_options
from gptexport.cli.output import Output, output_options, size

TYPES = ["float32", "float16", "bfloat16", "q8_0"]


@click.command(short_help="Write a checkpoint as GGUF, for llama.cpp.")
@click.argument("checkpoint")
@click.option("-o", "--out", required=True, type=OutputPath(), help="Where to write: NAME.gguf.")
@click.option("--dtype", type=Name(TYPES), default="float32", show_default=True, help="The stored matrices' type.")
@click.option("--tokenizer", metavar="NAME|FILE", help="Tokenizer to write.  [default: the one beside the checkpoint]")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Keep the first ids alone: without padding tokens.")
@assumption_options
@output_options("gguf")
def gguf(
    output: Output,
    checkpoint: str,
    out: Path,
    dtype: str,
    tokenizer: str | None,
    vocab_size: int | None,
    **assumed: Any,
) -> None:
    """Write CHECKPOINT as NAME.gguf for llama.cpp, and what is built on it: ollama, LM Studio, llama-cpp-python.

    \b
    Examples:
      gptexport gguf out/ckpt.pt -o gpt2.gguf --tokenizer gpt2     nanoGPT
      gptexport gguf model.pth -o minimind.gguf --dtype float16    minimind, as a Qwen3
      gptexport gguf out/ckpt.pt -o gpt2.gguf --dtype q8_0         8 bits a weight, one scale for 32

    \b
    Of GPT-2 and of Llama's family, in every format that `gptexport onnx` reads. Every tensor is read
    again and compared to the bit. Needs the gguf package.
    """
    from gptexport.staging import check_output

    if out.suffix != ".gguf":
        raise click.BadParameter(f"{out} does not end in .gguf.", param_hint="-o")
    check_output(out, force=False)
    output.step(f"reading {checkpoint}")
    from gptexport.checkpoints import load_checkpoint
    from gptexport.converters.gguf import write_gguf
    from gptexport.tokenizers import found_with, tokenizer_to_bundle

    loaded = load_checkpoint(checkpoint, **assumed, vocab_size=vocab_size)
    words, found = (tokenizer_to_bundle(tokenizer), None) if tokenizer is not None else found_with(loaded)
    done = write_gguf(loaded, out, dtype=dtype, tokenizer=words, progress=output.step)
    for note in (*loaded.notes, *([found] if found and words is None else []), *done.notes):
        output.note(note)
    output.result(
        {
            "ok": True,
            "path": str(out),
            "architecture": done.architecture,
            "dtype": dtype,
            "bytes": done.bytes,
            "tokenizer": words.name if words is not None else None,
        },
        f"{out}: {done.architecture}, {dtype}, {size(done.bytes)}\n"
        + (f"next: llama-cli -m {out}" if words is not None else f'next: llama_cpp.Llama("{out}").eval(ids)'),
    )
