"""Tiny checkpoints in the real formats, for every test that needs one.

Sizes are odd and the weights unfriendly on purpose: large enough that a wrong GELU, a transposed square matrix or a
lost bias shows in the logits; gains are not 1 and biases not 0.
"""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures import module
from gptexport.checkpoints import Checkpoint

Builder = Callable[..., Path]  # what makes a tiny checkpoint: `tiny_nanogpt(path, n_embd=48)`
SIZES: dict[str, int] = {"block_size": 17, "vocab_size": 97, "n_layer": 3, "n_head": 3, "n_embd": 30}


def random_weights(
    *,
    block_size: int = 17,
    vocab_size: int = 97,
    n_layer: int = 3,
    n_embd: int = 30,
    n_inner: int | None = None,
    bias: bool = True,
    tied: bool = True,
    seed: int = 0,
    **_: Any,
) -> dict[str, torch.Tensor]:
    """A state_dict as nanoGPT stores it, tied weights one tensor under two names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 0.1, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std + mean

    C, inner = n_embd, n_inner or 4 * n_embd
    weights = {"transformer.wte.weight": normal(vocab_size, C), "transformer.wpe.weight": normal(block_size, C)}

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = normal(C, std=0.3, mean=1.0)
        if bias:
            weights[f"{name}.bias"] = normal(C)

    def linear(name: str, out: int, into: int) -> None:
        weights[f"{name}.weight"] = normal(out, into, std=0.15)
        if bias:
            weights[f"{name}.bias"] = normal(out)

    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        norm(f"{block}.ln_1")
        linear(f"{block}.attn.c_attn", 3 * C, C)
        linear(f"{block}.attn.c_proj", C, C)
        norm(f"{block}.ln_2")
        linear(f"{block}.mlp.c_fc", inner, C)
        linear(f"{block}.mlp.c_proj", C, inner)
    norm("transformer.ln_f")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] if tied else normal(vocab_size, C)
    return weights


def tiny_nanogpt(
    path: Path,
    *,
    wrapper: str = "",
    dtype: torch.dtype = torch.float32,
    masks: bool = False,
    tied: bool = True,
    legacy: bool = False,
    seed: int = 0,
    weights: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    **model_args: Any,
) -> Path:
    """nanoGPT's ckpt.pt. `wrapper` is put before every name (`_orig_mod.`); `weights` replaces the random ones; a
    model_args field set to `...` is left out."""
    args = {**SIZES, "bias": True, "dropout": 0.0, **model_args}
    args = {name: value for name, value in args.items() if value is not ...}
    if weights is None:
        weights = cast(random_weights(**{**args, "tied": tied, "seed": seed}), dtype)
    if masks:
        mask = torch.ones(1, 1, args["block_size"], args["block_size"]).tril()
        weights |= {f"transformer.h.{layer}.attn.bias": mask for layer in range(args["n_layer"])}
    checkpoint = {
        "model": {wrapper + name: weight for name, weight in weights.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 6e-4}]},
        "model_args": args,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.4697),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
    } | (extra or {})
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    return path


# one character for each of the 97 ids
ALPHABET = [*map(chr, range(32, 127)), "é", "語"]


def nanogpt_meta(path: Path, characters: list[str] = ALPHABET, **more: Any) -> Path:
    """What nanoGPT's data/shakespeare_char/prepare.py leaves beside its data."""
    itos = dict(enumerate(characters))
    stoi = {character: i for i, character in itos.items()}
    path.write_bytes(pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": stoi, **more}))
    return path


def tiny_build_nanogpt(
    path: Path,
    *,
    wrapper: str = "",
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
    legacy: bool = False,
    seed: int = 0,
    class_name: str = "GPTConfig",
    weights: dict[str, Any] | None = None,
    val_loss: Any = 3.2924,
    **fields: Any,
) -> Path:
    """build-nanogpt's log/model_*.pt, its config truly a pickled `__main__.GPTConfig`."""
    values = {**SIZES, **fields}
    values = {name: value for name, value in values.items() if value is not ...}
    if weights is None:
        weights = cast(random_weights(**{**values, "tied": tied, "seed": seed}), dtype)
    config_class = type(class_name, (), {"__module__": "__main__", "__qualname__": class_name})
    config = config_class()
    vars(config).update(values)
    checkpoint = {
        "model": {wrapper + name: weight for name, weight in weights.items()},
        "config": config,
        "step": 19072,
        "val_loss": val_loss,
    }
    main = sys.modules["__main__"]
    setattr(main, class_name, config_class)  # pickle looks the class up where it says it lives
    try:
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    finally:
        delattr(main, class_name)
    return path


def tiny_huggingface(
    path: Path,
    *,
    safetensors: bool = True,
    sharded: bool = False,
    prefix: bool = True,
    dtype: torch.dtype = torch.float32,
    legacy: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A folder written by transformers' save_pretrained; `prefix=False` saves GPT2Model, as the hub's gpt2 is."""
    import transformers

    sizes = {"n_positions": SIZES["block_size"], **{k: v for k, v in SIZES.items() if k != "block_size"}}
    fields = {**sizes, "bos_token_id": 0, "eos_token_id": 0, **config}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields))
    shuffle(model, seed)
    saved = model if prefix else model.transformer
    torch.nn.Module.to(saved, dtype)  # transformers wraps its own in something without types
    limit = "20KB" if sharded else "1GB"
    saved.save_pretrained(path, max_shard_size=limit)
    if not safetensors:
        _to_bin(path, sharded=sharded, legacy=legacy)
    return path


def shuffle(model: torch.nn.Module, seed: int = 0) -> None:
    """Give a model the same kind of weights that `random_weights` makes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gain = "ln_" in name and name.endswith(".weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if gain else 0.12) + gain)


def cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """In another dtype, a tensor that is stored under two names still one."""
    made = {id(weight): weight.to(dtype) for weight in weights.values()}
    return {name: made[id(weight)] for name, weight in weights.items()}


def _to_bin(path: Path, *, sharded: bool, legacy: bool) -> None:
    """The same weights as pytorch_model*.bin, which transformers 5 reads and no longer writes."""
    from safetensors.torch import load_file

    for file in sorted(path.glob("*.safetensors")):
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(file), path / name, _use_new_zipfile_serialization=not legacy)
        file.unlink()
    if sharded:
        index = path / "model.safetensors.index.json"
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (path / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def tiny_fusable(folder: Path, kind: str) -> Path:
    """A checkpoint whose heads, of 16, every fused attention takes.

    kind: "tanh" or "erf" names the GELU; "erf without bias"; "scaled", as Mistral's GPT-2s scale attention.
    """
    if kind == "tanh":
        return tiny_huggingface(folder / "hf", n_embd=48)
    if kind == "scaled":
        return tiny_huggingface(folder / "hf", n_embd=48, scale_attn_by_inverse_layer_idx=True)
    return tiny_nanogpt(folder / "ckpt.pt", n_embd=48, bias=kind == "erf")


def own(model: torch.nn.Module, *, block_size: int, vocab_size: int) -> Checkpoint:
    """What the loader makes of a user's own module, without a file."""
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        architecture=module.ARCHITECTURE,
        config=module.ModuleConfig(block_size=block_size, vocab_size=vocab_size),
        format="module",
        block_size=block_size,
        vocab_size=vocab_size,
        sha256="",
    )
