"""Tiny checkpoints of other people's code: llm.c, LLMs-from-scratch, llama2.c, LitGPT, and tiktoken's pickle."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.support.builders import SIZES, random_weights
from tests.support.llama_builders import renamed, save, theirs, to_interleaved, weights_of

LLMS_FROM_SCRATCH_GPT = {
    r"transformer\.wte\.weight": "tok_emb.weight",
    r"transformer\.wpe\.weight": "pos_emb.weight",
    r"lm_head\.weight": "out_head.weight",
    r"transformer\.h\.(\d+)\.attn\.c_proj\.(weight|bias)": r"trf_blocks.\1.att.out_proj.\2",
    r"transformer\.h\.(\d+)\.attn\.c_attn\.(weight|bias)": r"trf_blocks.\1.att.qkv.\2",
    r"transformer\.h\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"trf_blocks.\1.ff.layers.0.\2",
    r"transformer\.h\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"trf_blocks.\1.ff.layers.2.\2",
    r"transformer\.h\.(\d+)\.ln_([12])\.weight": r"trf_blocks.\1.norm\2.scale",
    r"transformer\.h\.(\d+)\.ln_([12])\.bias": r"trf_blocks.\1.norm\2.shift",
    r"transformer\.ln_f\.weight": "final_norm.scale",
    r"transformer\.ln_f\.bias": "final_norm.shift",
}
LLMS_FROM_SCRATCH_LLAMA = {
    r"model\.embed_tokens\.weight": "tok_emb.weight",
    r"lm_head\.weight": "out_head.weight",
    r"model\.norm\.weight": "final_norm.NORM",
    r"model\.layers\.(\d+)\.self_attn\.q_proj\.weight": r"trf_blocks.\1.att.W_query.weight",
    r"model\.layers\.(\d+)\.self_attn\.k_proj\.weight": r"trf_blocks.\1.att.W_key.weight",
    r"model\.layers\.(\d+)\.self_attn\.v_proj\.weight": r"trf_blocks.\1.att.W_value.weight",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight": r"trf_blocks.\1.att.out_proj.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qk])_norm\.weight": r"trf_blocks.\1.att.\2_norm.NORM",
    r"model\.layers\.(\d+)\.mlp\.gate_proj\.weight": r"trf_blocks.\1.ff.fc1.weight",
    r"model\.layers\.(\d+)\.mlp\.up_proj\.weight": r"trf_blocks.\1.ff.fc2.weight",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.weight": r"trf_blocks.\1.ff.fc3.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"trf_blocks.\1.norm1.NORM",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"trf_blocks.\1.norm2.NORM",
}
_LLAMA2C = {
    r"model\.embed_tokens\.weight": "tok_embeddings.weight",
    r"lm_head\.weight": "output.weight",
    r"model\.norm\.weight": "norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight": r"layers.\1.attention.w\2.weight",
    r"model\.layers\.(\d+)\.mlp\.gate_proj\.weight": r"layers.\1.feed_forward.w1.weight",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.weight": r"layers.\1.feed_forward.w2.weight",
    r"model\.layers\.(\d+)\.mlp\.up_proj\.weight": r"layers.\1.feed_forward.w3.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"layers.\1.attention_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"layers.\1.ffn_norm.weight",
}
_LLAMA2C_ARGS = {
    "dim": 60,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 97,
    "multiple_of": 32,
    "max_seq_len": 64,
    "dropout": 0.0,
}
_LITGPT = {
    r"model\.embed_tokens\.weight": "transformer.wte.weight",
    r"lm_head\.weight": "lm_head.weight",
    r"model\.norm\.weight": "transformer.ln_f.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)": r"transformer.h.\1.attn.\2.\3",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.(weight|bias)": r"transformer.h.\1.attn.proj.\2",
    r"model\.layers\.(\d+)\.self_attn\.([qk])_norm\.weight": r"transformer.h.\1.attn.norm_\2.weight",
    r"model\.layers\.(\d+)\.mlp\.gate_proj\.(weight|bias)": r"transformer.h.\1.mlp.fc_1.\2",
    r"model\.layers\.(\d+)\.mlp\.up_proj\.(weight|bias)": r"transformer.h.\1.mlp.fc_2.\2",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.(weight|bias)": r"transformer.h.\1.mlp.proj.\2",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"transformer.h.\1.norm_1.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"transformer.h.\1.norm_2.weight",
}
_LITGPT_CONFIG: dict[str, Any] = {
    "name": "tiny-llama",
    "hf_config": {"org": "me", "name": "tiny"},
    "block_size": 64,
    "vocab_size": 90,
    "padded_vocab_size": 97,
    "padding_multiple": 512,
    "n_layer": 3,
    "n_head": 6,
    "n_query_groups": 2,
    "head_size": 10,
    "n_embd": 30,
    "intermediate_size": 42,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-5,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
    "rope_base": 10000,
    "bias": False,
    "mlp_class_name": "LLaMAMLP",
    "post_attention_norm": False,
    "n_expert": 0,
}
_PADDED = 128  # rows of llm.c's vocabulary
_LLMC_ORDER = [
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
]


def llmc(path: Path, *, version: int = 3, **header: int) -> Path:
    """llm.c's `.bin` of the weights of `random_weights`; a field of the header can be given another value."""
    V, T, L, H, C = (SIZES[name] for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"))
    weights = random_weights()
    fields = {
        "magic": 20240326,
        "version": version,
        "T": T,
        "V": V,
        "L": L,
        "H": H,
        "C": C,
        "padded": _PADDED,
        **header,
    }
    tensors = [torch.cat([weights["transformer.wte.weight"], torch.zeros(_PADDED - V, C)])]
    tensors += [weights["transformer.wpe.weight"]]
    tensors += [weights[f"transformer.h.{layer}.{name}"] for name in _LLMC_ORDER for layer in range(L)]
    tensors += [weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"]]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    data = flat.numpy().tobytes() if version != 5 else flat.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    path.write_bytes(np.array([*fields.values()] + [0] * (256 - len(fields)), np.int32).tobytes() + data)
    return path


def llms_from_scratch_gpt(*, qkv_bias: bool, **sizes: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """LLMs-from-scratch's GPTModel: its state_dict, and the same weights under GPT's names."""
    fields: dict[str, Any] = {**SIZES, **sizes}
    weights = random_weights(**fields, tied=False)
    if not qkv_bias:
        for name in weights:
            if name.endswith("c_attn.bias"):
                weights[name] = torch.zeros_like(weights[name])
    state = renamed(weights, LLMS_FROM_SCRATCH_GPT)
    for name in [name for name in state if ".att.qkv." in name]:
        joined = state.pop(name)
        if not qkv_bias and name.endswith("bias"):
            continue
        for part, rows in zip(("W_query", "W_key", "W_value"), joined.chunk(3), strict=True):
            state[name.replace("qkv", part)] = rows.clone()
    T = fields["block_size"]
    for layer in range(fields["n_layer"]):
        state[f"trf_blocks.{layer}.att.mask"] = torch.triu(torch.ones(T, T), diagonal=1)
    return state, weights


def llama2c(path: Path, *, model: Any = None, **args: Any) -> tuple[Path, Any]:
    """llama2.c's ckpt.pt, its rotary pairs interleaved, and transformers' model of the same weights."""
    model = model or theirs("Llama", hidden_size=60, tie_word_embeddings=True)
    weights, heads = weights_of(model), model.config
    for name in weights:
        if name.endswith("q_proj.weight"):
            weights[name] = to_interleaved(weights[name], heads.num_attention_heads)
        if name.endswith("k_proj.weight"):
            weights[name] = to_interleaved(weights[name], heads.num_key_value_heads)
    fields = {name: value for name, value in {**_LLAMA2C_ARGS, **args}.items() if value is not ...}
    state = {f"_orig_mod.{name}": weight for name, weight in renamed(weights, _LLAMA2C).items()}
    payload = {"model": state, "model_args": fields, "iter_num": 7, "best_val_loss": torch.tensor(1.5), "config": {}}
    return save(path, payload), model


def litgpt(
    path: Path, model: Any, *, legacy: bool = False, interleaved: bool = False, wrapped: bool = False, **config: Any
) -> Path:
    """A folder with the weights of transformers' model; `legacy` joins q, k, v group by group."""
    weights = weights_of(model)
    if interleaved:
        for name, weight in weights.items():
            heads = {"q": 6, "k": 2}.get(name.split(".")[-2].removesuffix("_proj"))
            weights[name] = to_interleaved(weight, heads) if heads else weight
    state = renamed(weights, _LITGPT)
    for name in [name for name in state if ".attn.q." in name]:
        q, k, v = (state.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv")
        parts = [q, k, v]
        if legacy:
            groups = zip(q.chunk(2), k.chunk(2), v.chunk(2), strict=True)
            parts = [rows for group in groups for rows in group]
        state[name.replace(".attn.q.", ".attn.attn." if legacy else ".attn.qkv.")] = torch.cat(parts)
    path.mkdir(exist_ok=True)
    torch.save({"model": state, "optimizer": {}} if wrapped else state, path / "lit_model.pth")
    fields = {name: value for name, value in {**_LITGPT_CONFIG, **config}.items() if value is not ...}
    (path / "model_config.yaml").write_text(yaml.dump(fields))
    return path


def pickled(path: Path, state: Any, *, module: str = "tiktoken.core", name: str = "Encoding") -> Path:
    """As tiktoken pickles an Encoding: its class by name, and its state."""
    kind = type(
        name,
        (),
        {
            "__module__": module,
            "__qualname__": name,
            "__getstate__": lambda self: state,
            "__setstate__": lambda self, value: None,
        },
    )
    made = types.ModuleType(module)
    setattr(made, name, kind)
    before = {part: sys.modules.get(part) for part in (module.split(".")[0], module)}
    sys.modules.update({module.split(".")[0]: types.ModuleType(module.split(".")[0]), module: made})
    try:
        path.write_bytes(pickle.dumps(kind()))
    finally:
        for part, old in before.items():
            del sys.modules[part]
            if old is not None:
                sys.modules[part] = old
    return path
