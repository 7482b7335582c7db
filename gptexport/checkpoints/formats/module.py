"""A user's own GPT, `module.py:factory`: the one source that is Python and is run, because the user says so.

`factory` is a function or class that takes no arguments and gives an nn.Module, or is one. Whatever its forward returns
(logits, a tuple, a dict, an object with `.logits`) becomes logits (B,T,V) in `LogitsOf`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from gptexport.architectures.module import ARCHITECTURE, ModuleConfig
from gptexport.casting import cast_parameters, floating_dtypes
from gptexport.checkpoints.formats import as_it_came
from gptexport.checkpoints.formats.as_it_came import AsItCame
from gptexport.checkpoints.formats.factory import UserCodeError, make_module, names_in, said, split, users_code
from gptexport.checkpoints.formats.forward import LogitsOf, check_signature
from gptexport.checkpoints.formats.huggingface_text import entry_of
from gptexport.checkpoints.formats.tensors import Tensors
from gptexport.checkpoints.formats.unwrap import check_exportable, inside, unwrap, without_compiling
from gptexport.checkpoints.types import Checkpoint
from gptexport.errors import CheckpointError
from gptexport_runtime.contract.manifest import TextEntry

__all__ = ["FORMAT", "is_module", "load", "names_in", "split"]

FORMAT = "module"
BLOCK_SIZE_NAMES = (
    "block_size",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_position_embeddings",
    "context_length",
    "sequence_len",
)
VOCAB_SIZE_NAMES = ("vocab_size", "padded_vocab_size", "n_vocab")
SPECIAL_NAMES = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


def is_module(source: str) -> bool:
    """Whether the source reads `something.py:name`; the file need not exist."""
    file, colon, _ = source.rpartition(":")
    return bool(colon) and file.endswith(".py")


def load(source: str, *, vocab_size: int | None = None, block_size: int | None = None) -> Checkpoint:
    """Run the factory, and check that its forward is one that can be exported and that loading changed nothing of it.

    Raises:
        CheckpointError: the file or the name is not there, the user's code fails (its error and line are told), its
            forward takes or returns something else than token ids and logits, its block_size is nowhere or is more
            than forward takes, or the module says something else than it said as it came.
    """
    path, name = split(source)
    made = make_module(source, path, name).eval()
    bare = inside(made)
    check_exportable(bare, source)
    check_signature(bare, source)
    T_max = block_size if block_size is not None else _block_size(bare, source)
    with without_compiling():
        came, notes = _listen(made, source, path, T_max)
        model, ids, more = _prepare(made, came, source, path, vocab_size)
    text = _text(bare, model.keep or came.vocab_size, more)
    return Checkpoint(
        model=model,
        architecture=ARCHITECTURE,
        config=ModuleConfig(block_size=T_max, vocab_size=model.keep or came.vocab_size, input_vocab_size=ids),
        format=FORMAT,
        block_size=T_max,
        vocab_size=model.keep or came.vocab_size,
        input_vocab_size=ids,
        sha256=_sha256(path, model.module),
        text=text,
        notes=(*notes, *more),
    )


def _listen(made: nn.Module, source: str, path: Path, T_max: int) -> tuple[AsItCame, list[str]]:
    """What the module says as it came. One of 16-bit weights that only runs once they are float32 is heard then."""
    V = find_size(inside(made), VOCAB_SIZE_NAMES)
    try:
        return _listen_once(made, source, path, T_max, V), []
    except UserCodeError as error:
        if floating_dtypes(made) <= {torch.float32} and as_it_came.device_of(made).type == "cpu":
            raise
        bare = unwrap(made).to(device="cpu")
        cast_parameters(bare, torch.float32)
        came = _listen_once(bare, source, path, T_max, V)
        told = str(error.__cause__).split("\n")[0]
        return came, [f"the module does not run as it came ({told}); it was heard in float32 on the CPU only"]


def _listen_once(made: nn.Module, source: str, path: Path, T_max: int, V: int | None) -> AsItCame:
    with users_code(source, path):
        try:
            return as_it_came.listen(made, source, block_size=T_max, vocab_size=V)
        except as_it_came.NoRoomError as error:
            assert error.__cause__ is not None
            raise CheckpointError(
                f"{source}: block_size is {T_max}, and forward does not run at T = {error.asked}: "
                f"{said(error.__cause__, path)}\nIt runs up to T = {error.longest}: pass "
                f"block_size {error.longest}, or give the module more positions."
            ) from error


def _prepare(
    made: nn.Module, came: AsItCame, source: str, path: Path, vocab_size: int | None
) -> tuple[LogitsOf, int | None, list[str]]:
    """The model that is exported, float32 on the CPU; how many ids it takes, where that is not V; what is to be told.

    After each step it is compared with what was heard before.
    """
    V = came.vocab_size
    if vocab_size is not None and vocab_size > V:
        raise CheckpointError(
            f"{source}: --vocab-size {vocab_size} is more than the logits have, {V}; it can only shrink."
        )
    moved = as_it_came.device_of(made).type != "cpu"
    bare = made.to(device="cpu")
    ids = as_it_came.ids_taken(bare, V, came.longest)
    notes = _notes(came, ids, vocab_size)
    sort = as_it_came.ids_of_every_sort(ids, _special_ids(inside(made)), came.longest)
    try:
        came = as_it_came.listen_to(bare, came, sort)
    except Exception as error:  # theirs: perhaps it asks for a text
        notes.append(f"forward does not take rows of one id alone, which are not compared: {said(error, path)}")
    bare = unwrap(made)
    model = LogitsOf(bare, key=came.key, keep=vocab_size if vocab_size not in (None, V) else None)
    model.requires_grad_(False).eval()
    dtypes = floating_dtypes(bare) - {torch.float32}
    with users_code(source, path):
        _check(model, came, source, as_it_came.MOVED if moved else as_it_came.tolerance(came))
        before = Tensors.of(bare)
        cast_parameters(bare, torch.float32)
        if changed := before.changes(bare):
            raise CheckpointError(f"{source}: casting it to float32 changed more than its dtype: {'; '.join(changed)}.")
        if dtypes:
            _check(model, came, source, max(as_it_came.ROUNDED.get(dtype, 0.0) for dtype in dtypes))
            notes.append(f"the module's weights were {_names(dtypes)}, cast to float32")
    ids = min(ids, model.keep or ids)
    return model, None if ids == (model.keep or V) else ids, notes


def _check(model: LogitsOf, came: AsItCame, source: str, allowed: float) -> None:
    error = as_it_came.difference(model, came)
    if not error <= allowed:
        raise CheckpointError(
            f"{source}: as gptexport prepares it, the module gives other logits than as the factory gave it: "
            f"{error:.1e} relative RMS, at most {allowed:.0e} expected. Wrappers of torch.compile, DataParallel and "
            "DistributedDataParallel are taken off, hooks on them too; it is in eval mode and on the CPU, and its "
            "weights are float32. Let the factory give the module as it is to be exported."
        )


def _notes(came: AsItCame, ids: int, vocab_size: int | None) -> list[str]:
    notes, V = [], vocab_size or came.vocab_size
    if came.longest < came.block_size:
        notes.append(
            f"block_size {came.block_size} takes too long to be tried here: forward was run up to {came.longest}"
        )
    if ids < V:
        notes.append(
            f"forward takes {ids} ids and gives {V} logits: those from {ids} on are of no token. --vocab-size {ids} "
            "drops them"
        )
    return notes


def find_size(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of the names that is a positive integer in the module's config or on the module itself."""
    for name in names:
        for holder in (getattr(module, "config", None), module):
            value = _of(holder, name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _special_ids(module: nn.Module) -> set[int]:
    """Padding, beginning and end of a text, as far as the module or its config names them."""
    found: set[int] = set()
    for holder in (module, getattr(module, "config", None), getattr(module, "generation_config", None)):
        for name in SPECIAL_NAMES:
            value = _of(holder, name)
            values = value if isinstance(value, list | tuple) else [value]
            found |= {i for i in values if isinstance(i, int) and not isinstance(i, bool)}
    return found


def _text(module: nn.Module, vocab_size: int, notes: list[str]) -> TextEntry:
    """The ids that begin, end and pad a text, from where transformers' models have them."""
    holder = getattr(module, "generation_config", None) or getattr(module, "config", None)
    fields = {name: _of(holder, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    return entry_of(fields, vocab_size, type(holder).__name__, notes)


def _of(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _block_size(module: nn.Module, source: str) -> int:
    found = find_size(module, BLOCK_SIZE_NAMES)
    if found is None:
        raise CheckpointError(
            f"{source}: the longest sequence is not known: neither {type(module).__name__} nor its config has one of "
            f"{', '.join(BLOCK_SIZE_NAMES)}. Set one in the module, or pass block_size."
        )
    return found


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _sha256(path: Path, module: nn.Module) -> str:
    """The SHA-256 of the file and of the weights that it produced, wherever it read them."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            weights.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            weights.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    with path.open("rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{path.name} {source}\nstate_dict {weights.hexdigest()}\n".encode()).hexdigest()
