"""`gptexport hf`: a checkpoint becomes a folder that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptexport.cli.conversion import conversion_options, read_with_tokenizer
from gptexport.cli.output import Output, output_options, size
from gptexport.precision import dtypes


@click.command(short_help="Write a checkpoint as a Hugging Face folder.")
@conversion_options(dtypes(), where="a folder that is not there yet", stored="The stored weights' type.")
@output_options("hf")
def hf(
    output: Output,
    checkpoint: str,
    out: Path,
    dtype: str,
    tokenizer: str | None,
    vocab_size: int | None,
    **assumed: Any,
) -> None:
    """Write CHECKPOINT as a folder for transformers, and what reads such folders: vLLM, SGLang, llama.cpp, ollama.

    \b
    Examples:
      gptexport hf out/ckpt.pt -o gpt2-hf/ --tokenizer gpt2    nanoGPT, as GPT2LMHeadModel
      gptexport hf model.pth -o minimind-hf/                   minimind, as LlamaForCausalLM or Qwen3ForCausalLM
      gptexport hf out/ckpt.pt -o gpt2-hf/ --dtype bfloat16    half the size

    \b
    Of GPT-2, GPT-NeoX and Llama's family, in every format that `gptexport onnx` reads. Every weight is read
    again and compared, and where transformers is installed its logits are held to parity's gate.
    """
    from gptexport.staging import check_output

    if out.suffix == ".onnx":
        raise click.BadParameter(f"{out} is the name of a graph; name a folder.", param_hint="-o")
    check_output(out, force=False)
    from gptexport.converters import convert

    loaded, words = read_with_tokenizer(output, checkpoint, tokenizer, vocab_size, assumed)
    beside = loaded.tokenizer.parent if tokenizer is None and loaded.tokenizer is not None else None
    done = convert(loaded, out, dtype=dtype, tokenizer=words, beside=beside, progress=output.step)
    for note in done.notes:
        output.note(note)
    proved = "every weight read again"
    if done.noise_ratio is not None:
        proved += f"; transformers' logits: {done.noise_ratio:.2f} × eager's noise"
    else:
        output.note("transformers is not installed, so its own logits were not compared")
    output.step(proved)
    output.result(
        {
            "ok": True,
            "path": str(out),
            "class": done.class_name,
            "dtype": dtype,
            "bytes": done.bytes,
            "tokenizer": words.name if words is not None else None,
            "noise_ratio": done.noise_ratio,
        },
        f"{out}: {done.class_name}, {dtype}, {size(done.bytes)}\n"
        f'next: AutoModelForCausalLM.from_pretrained("{out}"), or vllm serve {out}',
    )
