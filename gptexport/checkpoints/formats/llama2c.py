"""llama2.c's `ckpt.pt`: `model`, and the `model_args` it was made with. A Llama, tied, its rotary pairs interleaved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import llama
from gptexport.architectures.llama import LlamaConfig
from gptexport.architectures.rotary import interleaved_to_halves
from gptexport.checkpoints.formats.llama_names import EMBEDDING, HEAD, heads_of, renamed, sizes_of
from gptexport.checkpoints.formats.nanogpt import training
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.sizes import positive_integer, wrong_values_in
from gptexport.checkpoints.types import Stored
from gptexport.errors import CheckpointError

FORMAT = "llama2.c"
_NEEDED = ("dim", "n_layers", "n_heads", "vocab_size", "max_seq_len")
_KNOWN = (*_NEEDED, "n_kv_heads", "hidden_dim", "multiple_of", "norm_eps", "dropout")
_NAMES = {
    r"tok_embeddings\.weight": EMBEDDING,
    r"output\.weight": HEAD,
    r"norm\.weight": "model.norm.weight",
    r"layers\.(\d+)\.attention\.w([qkvo])\.weight": r"model.layers.\1.self_attn.\2_proj.weight",
    r"layers\.(\d+)\.feed_forward\.w1\.weight": r"model.layers.\1.mlp.gate_proj.weight",
    r"layers\.(\d+)\.feed_forward\.w2\.weight": r"model.layers.\1.mlp.down_proj.weight",
    r"layers\.(\d+)\.feed_forward\.w3\.weight": r"model.layers.\1.mlp.up_proj.weight",
    r"layers\.(\d+)\.attention_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"layers\.(\d+)\.ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
}


def is_llama2c(model_args: Any) -> bool:
    """Whether a checkpoint's `model_args` are llama2.c's and not nanoGPT's."""
    return isinstance(model_args, Mapping) and "dim" in model_args and "n_embd" not in model_args


def read(payload: Mapping[str, Any], path: Path) -> Stored:
    """What a llama2.c checkpoint says; its queries' and keys' projections are copied, all else stays mapped.

    Raises:
        CheckpointError: model_args lacks a field, has one that gptexport does not know, or a wrong value in it.
    """
    args = payload["model_args"]
    where = f"{path}: model_args"
    if missing := [name for name in _NEEDED if name not in args]:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; the model cannot be rebuilt without.")
    if unknown := [str(name) for name in args if name not in _KNOWN]:
        raise CheckpointError(f"{where} has {', '.join(unknown)}, which llama2.c's model does not have.")
    weights, problems = clean_state_dict(payload["model"])
    weights = renamed({name: w for name, w in weights.items() if not name.endswith("attention.mask")}, _NAMES)
    heads = heads_of(weights, path, n_head=positive_integer(args["n_heads"], "n_heads", path))
    stated = args.get("n_kv_heads") or args["n_heads"]
    if heads["n_kv_head"] != stated:
        raise CheckpointError(f"{where}: n_kv_heads is {stated!r}, but the keys have {heads['n_kv_head']} heads.")
    with wrong_values_in(where):
        config = LlamaConfig(
            **{**sizes_of(weights, path), "n_layer": args["n_layers"], "n_embd": args["dim"]},
            **heads,
            block_size=args["max_seq_len"],
            norm_eps=args.get("norm_eps", 1e-5),
            rope_base=1e4,
            tied=is_tied(weights, EMBEDDING, HEAD),
        )
    return Stored(
        format=FORMAT,
        path=path,
        architecture=llama.ARCHITECTURE,
        config=config,
        weights={name: _in_halves(name, weight, heads) for name, weight in weights.items()},
        files=(path,),
        training=training(payload, ("iter_num", "best_val_loss")),
        problems=problems,
    )


def _in_halves(name: str, weight: torch.Tensor, heads: Mapping[str, int]) -> torch.Tensor:
    for part, count in ((".q_proj.weight", heads["n_head"]), (".k_proj.weight", heads["n_kv_head"])):
        if name.endswith(part) and weight.shape[0] == count * heads["head_size"]:
            return interleaved_to_halves(weight, count)
    return weight  # also where its shape is wrong, which the comparison with the config tells
