"""`gptexport onnx`: a checkpoint becomes a bundle."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import DEFAULT_DEVICE, Graphs, Name, OutputPath, assumption_options
from gptexport.cli.output import Output, output_options, size
from gptexport.errors import ExportError
from gptexport.export.layout import LAYOUTS, layout_for
from gptexport.export.targets import TARGETS
from gptexport.precision import dtypes, quantizations
from gptexport.recipe import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET, Recipe
from gptexport_runtime.backends.ort.providers import why_not

if TYPE_CHECKING:
    from gptexport.export import Exported

OF_FILES = (".pt", ".pth", ".bin", ".safetensors", ".engine")  # suffixes that nobody gives a folder knowingly
_TARGETS = "; ".join(f"{target.name}: {target.help}" for target in TARGETS.values())


@click.command(short_help="Export a checkpoint to ONNX.")
@click.argument("checkpoint")
@click.option("-o", "--out", "out", required=True, type=OutputPath(), help="Where to write: a folder, or NAME.onnx.")
@click.option(
    "--dtype",
    type=Name(dtypes()),
    default="float32",
    show_default=True,
    help="Precision of weights and computation.",
)
@click.option(
    "--target",
    type=Name(list(TARGETS)),
    help=f"What to optimize for. {_TARGETS}.  [default: portable, or the one that --quantize needs]",
)
@click.option(
    "--quantize",
    type=Name(quantizations()),
    help="Quantize weights to 8 or 4 bits, and activations to 8, for --target cpu or openvino.",
)
@click.option(
    "--quantize-cache",
    is_flag=True,
    help="With --quantize: keys and values in 8 bits too. Long texts take less memory, and are faster.",
)
@click.option(
    "--graphs",
    type=Graphs(),
    help="Which graphs to write, of logits,last,score,decode.  [default: all that the model allows]",
)
@assumption_options
@click.option(
    "--vocab-size",
    type=click.IntRange(min=1),
    help="Keep the first N tokens only, to drop the padding of a vocabulary.",
)
@click.option("--block-size", type=click.IntRange(min=1), help="The longest sequence, if your own module does not say.")
@click.option(
    "--tokenizer",
    help="For the bundle: bytes, gpt2, a tokenizer.json, vocab.json, vocab.txt, tokenizer.model or meta.pkl.  "
    "[default: the checkpoint's own]",
)
@click.option(
    "--opset",
    type=click.IntRange(MIN_OPSET, MAX_OPSET),
    default=DEFAULT_OPSET,
    show_default=True,
    help="ONNX operator set; from 23 on attention is a single node.",
)
@click.option(
    "--pad-vocab",
    is_flag=True,
    help="For --target cuda in 16 bits: rows of logits begin on 128 bytes. device_output is a view of longer rows.",
)
@click.option(
    "--native-logits",
    is_flag=True,
    help="For --target cuda in 16 bits: logits stay in --dtype, which device_output hands out.",
)
@click.option(
    "--layout",
    type=Name(list(LAYOUTS)),
    help="What the folder is; genai: a bundle that onnxruntime-genai opens too.  [default: bundle]",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@output_options("onnx")
def onnx(
    output: Output,
    checkpoint: str,
    out: Path,
    dtype: str,
    target: str | None,
    quantize: str | None,
    quantize_cache: bool,
    graphs: list[str] | None,
    vocab_size: int | None,
    block_size: int | None,
    tokenizer: str | None,
    opset: int,
    pad_vocab: bool,
    native_logits: bool,
    layout: str | None,
    force: bool,
    **assumed: Any,
) -> None:
    """Export CHECKPOINT to ONNX, with dynamic batch and length.

    \b
    Examples:
      gptexport onnx out/ckpt.pt -o gpt2/                  nanoGPT
      gptexport onnx log/model_19072.pt -o gpt2/           build-nanogpt
      gptexport onnx openai-community/gpt2 -o gpt2/        Hugging Face: a hub id or a folder
      gptexport onnx base_checkpoints/d12/model_003750.pt -o d12/   nanochat
      gptexport onnx my_model.py:make_gpt -o gpt2/         your own nn.Module
      gptexport onnx out/ckpt.pt -o gpt2.onnx              the graph alone, for other tools
      gptexport onnx out/ckpt.pt -o gpt2/ --vocab-size 50257   without the padding tokens
      gptexport onnx out/ckpt.pt -o gpt2/ --target cpu --quantize int8   a quarter of the size, for CPUs
      gptexport onnx out/ckpt.pt -o gpt2/ --quantize int4      an eighth: tokens one at a time, on CPUs
      gptexport onnx out/ckpt.pt -o gpt2/ --quantize int8w     a quarter, and closer than int8
      gptexport onnx out/ckpt.pt -o gpt2/ --quantize int4 --quantize-cache   for long texts in little memory
      gptexport onnx out/ckpt.pt -o gpt2/ --target cuda --dtype bfloat16   for GPUs
      gptexport onnx out/ckpt.pt -o gpt2/ --layout genai       for onnxruntime-genai too
      gptexport onnx out/ckpt.pt -o gpt2/ --tokenizer data/shakespeare_char/meta.pkl   for text in and out

    \b
    A bundle is a folder: gptexport.json, weights.data and a graph for each use, such as
    logits.onnx: input_ids (B,T) -> logits (B,T,V). It appears only after everything has been checked.
    """
    from gptexport.staging import check_output

    try:
        recipe = Recipe.of(
            dtype=dtype,
            target=target,
            quantize=quantize,
            quantize_cache=quantize_cache,
            graphs=graphs,
            opset=opset,
            pad_vocab=pad_vocab,
            native_logits=native_logits,
        )
        place = layout_for(out, layout)
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    check_output(out, force=force)  # before the seconds that importing torch takes
    place.check(recipe)
    output.step(f"reading {checkpoint}")

    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export
    from gptexport.tokenizers import found_with, tokenizer_to_bundle

    loaded = load_checkpoint(checkpoint, **assumed, vocab_size=vocab_size, block_size=block_size)
    output.step(
        f"{loaded.format} checkpoint, {sum(p.numel() for p in loaded.model.parameters()) / 1e6:,.1f} M parameters"
    )
    carried, found = tokenizer_to_bundle(tokenizer) if tokenizer else None, None
    if tokenizer is None and out.suffix != ".onnx":
        carried, found = found_with(loaded)
    changes = [f"{tokenizer}: {change}" for change in carried.changes] if carried and tokenizer else []
    for note in (*loaded.notes, *([found] if found else []), *changes):
        output.note(note)
    done = export(loaded, out, replace(recipe, tokenizer=carried), layout=layout, force=force, progress=output.step)

    if out.suffix in OF_FILES:
        output.note(f"{out} is a folder, as every bundle is, though its name is like a file's.")
    for note in (*done.notes, *(f"without {kind}.onnx: {why}" for kind, why in done.manifest.left_out.items())):
        output.note(note)
    output.step(f"{_audited(done)}; {_ran(done)}")
    if (kernels := done.manifest.checked.get("kernels")) is not None:
        output.step(f"CUDA kernels: {kernels}; attention: {_expected(done)}")
    # a bundle keeps the sizes itself
    sizes = {"vocab_size": vocab_size, "block_size": block_size} if out.suffix == ".onnx" else {}
    output.result(
        {
            "ok": True,
            "path": str(out),
            "bytes": done.bytes,
            "parameters": done.manifest.parameters,
            "model": dict(done.manifest.model),
            "audit": dict(done.manifest.audit),
            "graphs": list(done.manifest.graphs),
            "left_out": dict(done.manifest.left_out),
            "checked": dict(done.manifest.checked),
            "check_relative_rms": done.check_error,
        },
        f"{out}: {size(done.bytes)}\nnext: {_next(recipe, out, checkpoint, {**assumed, **sizes})}",
    )


def _next(recipe: Recipe, out: Path, checkpoint: str, options: dict[str, Any]) -> str:
    """The command that checks what was written, with all that it has to be told."""
    told = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    devices = recipe.target.runs_on(recipe.precision)  # the one that it is written for first
    usual = next((name for name in devices if why_not(name) is None), devices[0])
    device = [f"--device={usual}"] if usual != DEFAULT_DEVICE else []
    return shlex.join(["gptexport", "parity", str(out), "--against", checkpoint, *told, *device])


def _audited(done: Exported) -> str:
    rows = done.manifest.audit.items()
    return ", ".join(f"{row['achieved']} of {row['expected']} {op}" for op, row in rows) or "nothing to audit"


def _ran(done: Exported) -> str:
    return f"run {done.run.value}, at shapes not traced: {done.check_error:.1e} relative RMS from eager"


def _expected(done: Exported) -> str:
    kernels = [f"{op} by {' or '.join(names)}" for op, names in done.manifest.expected_kernels.items()]
    return f"{', '.join(kernels)} expected" if kernels else "no attention node, so nothing expected"
