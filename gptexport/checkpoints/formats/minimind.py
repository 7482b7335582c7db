"""minimind's `.pth`, such as `out/full_sft_768.pth`: weights alone, usually in float16, a Qwen3 in all but name.

Sizes follow from shapes. What does not is taken from its code: 8 heads where queries are not normed, a longest text of
32768, a rope base of 1e6, and eps 1e-6 since queries and keys are normed (minimind-3), 1e-5 before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.architectures import llama
from gptexport.architectures.llama import LlamaConfig
from gptexport.checkpoints.formats.huggingface_text import text_of
from gptexport.checkpoints.formats.llama_names import EMBEDDING, HEAD, heads_of, sizes_of
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.sizes import note_of_heads, shape_of, wrong_values_in
from gptexport.checkpoints.types import AssumptionSource, Stored
from gptexport.errors import UnknownCheckpointError
from gptexport_runtime.contract.manifest import TextEntry

FORMAT = "minimind"
N_HEAD = 8
BLOCK_SIZE = 32768


def read(state: Mapping[Any, Any], path: Path, *, n_head: int | None = None) -> Stored:
    """What minimind's weights say, still mapped.

    Raises:
        CheckpointError: a weight from which a size follows is missing or has another shape.
        UnknownCheckpointError: it is one of its mixtures of experts.
    """
    weights, problems = clean_state_dict(state)
    if any(".mlp.experts." in name for name in weights):
        raise UnknownCheckpointError(
            f"{path}: a minimind with a mixture of experts, which gptexport does not build. Export it through its own "
            "code: `gptexport onnx module.py:factory`."
        )
    fields = sizes_of(weights, path)
    if fields["qk_norm"] and n_head is None:
        (size,) = shape_of(weights, "model.layers.0.self_attn.q_norm.weight", path, dims=1)
        heads = heads_of(weights, path, head_size=size)
    else:
        heads = heads_of(weights, path, n_head=n_head if n_head is not None else N_HEAD)
    told: AssumptionSource = "option" if n_head is not None else "checkpoint" if fields["qk_norm"] else "format"
    weights.setdefault(HEAD, weights[EMBEDDING])
    with wrong_values_in(path):
        config = LlamaConfig(
            **fields,
            **heads,
            block_size=BLOCK_SIZE,
            tied=is_tied(weights, EMBEDDING, HEAD),
            norm_eps=1e-6 if fields["qk_norm"] else 1e-5,
            rope_base=1e6,
        )
    tokenizer = _tokenizer(path)
    text = text_of(tokenizer.parent, {}, config.vocab_size) if tokenizer else None
    return Stored(
        format=FORMAT,
        path=path,
        architecture=llama.ARCHITECTURE,
        config=config,
        assumed={"n_head": told},
        weights=weights,
        files=(path,),
        tokenizer=tokenizer,
        text=text.ids if text else TextEntry(),
        problems=problems,
        notes=(
            *note_of_heads(config.n_head, told),
            f"block_size taken as {BLOCK_SIZE}, as in minimind's code: the file does not say. A smaller one makes a "
            "smaller bundle: --block-size",
            *(text.notes if text else ()),
        ),
    )


def _tokenizer(path: Path) -> Path | None:
    """`model/tokenizer.json` of the repository whose `out/` the file is in."""
    for found in (path.parent / "tokenizer.json", path.resolve().parent.parent / "model" / "tokenizer.json"):
        if found.is_file():
            return found
    return None
