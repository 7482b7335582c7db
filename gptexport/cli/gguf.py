"""`gptexport gguf`: a checkpoint becomes a file that llama.cpp reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptexport.cli.conversion import conversion_options, read_with_tokenizer
from gptexport.cli.output import Output, output_options, size

TYPES = ["float32", "float16", "bfloat16", "q8_0"]


@click.command(short_help="Write a checkpoint as GGUF, for llama.cpp.")
@conversion_options(TYPES, where="NAME.gguf", stored="The stored matrices' type.")
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
    from gptexport.converters.gguf import write_gguf

    loaded, words = read_with_tokenizer(output, checkpoint, tokenizer, vocab_size, assumed)
    done = write_gguf(loaded, out, dtype=dtype, tokenizer=words, progress=output.step)
    for note in done.notes:
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
