"""Llama3Model and Qwen3Model of "Build a Large Language Model (From Scratch)", as a bare state_dict of theirs.

Both are Llama-shaped. What the file does not say is taken from the book's configs: Llama 3.2's rotary scaling, base
500000, eps 1e-5; Qwen3's base 1e6, eps 1e-6. Heads follow from the norms of queries and keys, which Llama3Model lacks.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.architectures import llama
from gptexport.architectures.llama import LlamaConfig
from gptexport.architectures.rotary import Llama3
from gptexport.checkpoints.formats.llama_names import EMBEDDING, HEAD, heads_of, renamed, sizes_of
from gptexport.checkpoints.formats.llms_from_scratch import FORMAT
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.sizes import missing_heads, note_of_heads, shape_of, wrong_values_in
from gptexport.checkpoints.types import AssumptionSource, Stored
from gptexport.errors import UnknownCheckpointError

LLAMA_HEADS = {2048: 32, 3072: 24}  # by width, of the two models in the book
_LLAMA: dict[str, Any] = {
    "block_size": 131_072,
    "norm_eps": 1e-5,
    "rope_base": 500_000.0,
    "rope_scaling": Llama3(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192),
}
_QWEN: dict[str, Any] = {"block_size": 40_960, "norm_eps": 1e-6, "rope_base": 1_000_000.0}
_NAMES = {
    r"tok_emb\.weight": EMBEDDING,
    r"out_head\.weight": HEAD,
    r"final_norm\.(?:scale|weight)": "model.norm.weight",
    r"trf_blocks\.(\d+)\.att\.W_query\.weight": r"model.layers.\1.self_attn.q_proj.weight",
    r"trf_blocks\.(\d+)\.att\.W_key\.weight": r"model.layers.\1.self_attn.k_proj.weight",
    r"trf_blocks\.(\d+)\.att\.W_value\.weight": r"model.layers.\1.self_attn.v_proj.weight",
    r"trf_blocks\.(\d+)\.att\.out_proj\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"trf_blocks\.(\d+)\.att\.([qk])_norm\.(?:scale|weight)": r"model.layers.\1.self_attn.\2_norm.weight",
    r"trf_blocks\.(\d+)\.ff\.fc1\.weight": r"model.layers.\1.mlp.gate_proj.weight",
    r"trf_blocks\.(\d+)\.ff\.fc2\.weight": r"model.layers.\1.mlp.up_proj.weight",
    r"trf_blocks\.(\d+)\.ff\.fc3\.weight": r"model.layers.\1.mlp.down_proj.weight",
    r"trf_blocks\.(\d+)\.norm1\.(?:scale|weight)": r"model.layers.\1.input_layernorm.weight",
    r"trf_blocks\.(\d+)\.norm2\.(?:scale|weight)": r"model.layers.\1.post_attention_layernorm.weight",
}


def read(state: Mapping[Any, Any], path: Path, *, n_head: int | None = None) -> Stored:
    """What the weights say, still mapped.

    Raises:
        CheckpointError: a weight from which a size follows is missing or has another shape, or n_head is not known.
        UnknownCheckpointError: it is the book's mixture of experts.
    """
    cleaned, problems = clean_state_dict(state)
    if any(re.fullmatch(r"trf_blocks\.\d+\.ff\.(gate\.weight|fc1\.\d+\.weight)", name) for name in cleaned):
        raise UnknownCheckpointError(
            f"{path}: a Qwen3Model with a mixture of experts, which gptexport does not build. Export it through its "
            "own code: `gptexport onnx module.py:factory`."
        )
    weights = renamed({name: w for name, w in cleaned.items() if name not in ("cos", "sin")}, _NAMES)
    fields = sizes_of(weights, path)
    heads, told = _heads(weights, fields, path, n_head)
    book = _QWEN if fields["qk_norm"] else _LLAMA
    weights.setdefault(HEAD, weights[EMBEDDING])
    with wrong_values_in(path):
        config = LlamaConfig(**fields, **heads, **book, tied=is_tied(weights, EMBEDDING, HEAD))
    name = "Qwen3Model, with base 1,000,000" if fields["qk_norm"] else "Llama3Model, with Llama 3.2's rotary scaling"
    return Stored(
        format=FORMAT,
        path=path,
        architecture=llama.ARCHITECTURE,
        config=config,
        assumed={"n_head": told},
        weights=weights,
        files=(path,),
        problems=problems,
        notes=(
            *note_of_heads(config.n_head, told),
            f"taken as the book's {name} and a longest text of {config.block_size}: the file does not say. Any other "
            "needs a Hugging Face folder, or a module.py",
        ),
    )


def _heads(
    weights: Mapping[str, Any], fields: Mapping[str, Any], path: Path, n_head: int | None
) -> tuple[dict[str, Any], AssumptionSource]:
    if n_head is not None:
        return heads_of(weights, path, n_head=n_head), "option"
    if fields["qk_norm"]:
        (size,) = shape_of(weights, "model.layers.0.self_attn.q_norm.weight", path, dims=1)
        return heads_of(weights, path, head_size=size), "checkpoint"
    if (known := LLAMA_HEADS.get(fields["n_embd"])) is not None:
        return heads_of(weights, path, n_head=known), "format"
    raise missing_heads(path, fields["n_embd"])
