"""A bare `state_dict()` of nanoGPT, minGPT or build-nanogpt, or of transformers' GPT-2, without its config.

Sizes follow from shapes. n_head does not, and neither does the GELU: where there are no biases it is nanoGPT's, erf;
else it is taken as tanh, which minGPT, the lecture and transformers compute.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.architectures import gpt2
from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.sizes import heads_of_gpt2, layers_in, note_of_heads, shape_of, wrong_values_in
from gptexport.checkpoints.types import Stored

FORMAT = "state-dict"
_HEAD, _WTE = "lm_head.weight", "transformer.wte.weight"
_LINEARS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_FIRST = "transformer.h.0."


def read(state: Mapping[Any, Any], path: Path, *, n_head: int | None = None) -> Stored:
    """What GPT-2's weights alone say, still mapped.

    Raises:
        CheckpointError: a weight from which a size follows is missing or has another shape, or n_head is not known.
    """
    weights, problems = clean_state_dict(state)
    if "wte.weight" in weights:
        weights = {name if name.startswith("lm_head.") else f"transformer.{name}": w for name, w in weights.items()}
    V, C = shape_of(weights, _WTE, path, dims=2)
    T, _ = shape_of(weights, "transformer.wpe.weight", path, dims=2)
    if shape_of(weights, f"{_FIRST}attn.c_attn.weight", path, dims=2) == (C, 3 * C):  # transformers' Conv1D, (in,out)
        weights = {name: w.t() if name.endswith(_LINEARS) and w.ndim == 2 else w for name, w in weights.items()}
    if _HEAD not in weights:
        weights[_HEAD] = weights[_WTE]
    inner, _ = shape_of(weights, f"{_FIRST}mlp.c_fc.weight", path, dims=2)
    bias = f"{_FIRST}attn.c_attn.bias" in weights
    heads, told = heads_of_gpt2(C, n_head, path)
    with wrong_values_in(path):
        config = GPTConfig(
            block_size=T,
            vocab_size=V,
            n_layer=layers_in(weights, "transformer.h.{layer}.", path),
            n_head=heads,
            n_embd=C,
            n_inner=inner if inner != 4 * C else None,
            gelu="tanh" if bias else "erf",
            bias=bias,
            tied=is_tied(weights),
        )
    return Stored(
        format=FORMAT,
        path=path,
        architecture=gpt2.ARCHITECTURE,
        config=config,
        assumed={"gelu": "format", "n_head": told},
        weights=weights,
        files=(path,),
        problems=problems,
        notes=note_of_heads(heads, told),
    )
