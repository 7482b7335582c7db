"""`load_checkpoint`: locate, recognise, read, compare with the config, build."""

import hashlib
from dataclasses import replace
from pathlib import Path

from gptexport.assumptions import ASSUMPTIONS
from gptexport.checkpoints.formats import module
from gptexport.checkpoints.locate import locate
from gptexport.checkpoints.payload import recognise_payload
from gptexport.checkpoints.readers import CONTAINERS, PAYLOADS, Choices
from gptexport.checkpoints.recognise import only_checkpoint, recognise
from gptexport.checkpoints.strict import assemble, check_weights, dtype_name
from gptexport.checkpoints.torch_file import read_torch_file
from gptexport.checkpoints.types import Checkpoint, Foreign, Stored
from gptexport.errors import CheckpointError, UnknownCheckpointError
from gptexport_runtime.files import open_regular

GPT2_VOCAB = 50257  # of GPT-2's tokenizer


def load_checkpoint(
    source: str,
    *,
    gelu: str | None = None,
    n_head: int | None = None,
    softcap: float | None = None,
    vocab_size: int | None = None,
    block_size: int | None = None,
) -> Checkpoint:
    """Load a checkpoint strictly and safely.

    Args:
        source: a file, a folder, a hub id, or a user's own `module.py:factory` (that one is Python and is run).
        gelu: "tanh" or "erf", which overrides what the file or its format says; not for a module.
        n_head: attention heads, for weights that come without a config and do not tell.
        softcap: 15 or 20, of a nanochat from between January and March 2026.
        vocab_size: keep only the first N logits, for a vocabulary that was padded in training.
        block_size: the longest T; a GPT-2's can only shrink (wpe loses rows), a module's is taken as given.

    Raises:
        CheckpointError: not there, damaged, incomplete, or asks for something that gptexport does not do.
        UnknownCheckpointError: nothing that is recognised, or a format that is only recognised.
        UnsafeCheckpointError: loading it would run code that it carries.
    """
    asked = {"gelu": gelu, "n_head": n_head, "softcap": softcap, "vocab_size": vocab_size, "block_size": block_size}
    options = {name: value for name, value in asked.items() if value is not None}
    choices = {item.name: options[item.name] for item in ASSUMPTIONS if item.name in options}
    _check_options(choices, vocab_size, block_size)
    return replace(_load(source, choices, vocab_size, block_size), options=options)


def _load(source: str, choices: Choices, vocab_size: int | None, block_size: int | None) -> Checkpoint:
    if module.is_module(source):
        for name in choices:
            raise CheckpointError(
                f"{source}: {name} is for checkpoints whose model gptexport builds; your own module computes its own."
            )
        return module.load(source, vocab_size=vocab_size, block_size=block_size)
    path = locate(source)
    stored = read(path, choices)
    if isinstance(stored, Foreign):
        advice = f". {stored.advice}" if stored.advice else ""
        raise UnknownCheckpointError(f"{path}: {stored.what}{advice}.")
    return build(stored, choices, vocab_size, block_size)


def read(path: Path, choices: Choices | None = None) -> Stored | Foreign:
    """What the path holds, weights still mapped and not yet compared with the config.

    Args:
        choices: what the file may not say, by the name of the assumption.

    Raises:
        CheckpointError: it is damaged, or its config is; UnsafeCheckpointError: it carries code.
    """
    kind = recognise(path)
    if isinstance(kind, Foreign) and path.is_dir() and (inside := only_checkpoint(path)) is not None:
        path, kind = inside, recognise(inside)
    if isinstance(kind, Foreign):
        return kind
    if kind in CONTAINERS:
        return CONTAINERS[kind](path)
    file = read_torch_file(path)
    found = recognise_payload(file.payload, path)
    return found if isinstance(found, Foreign) else PAYLOADS[found](file, path, choices or {})


def notes_of(stored: Stored, choices: Choices | None = None, vocab_size: int | None = None) -> tuple[str, ...]:
    """What a person should know about what is stored and what was made of it."""
    notes, choices, V = list(stored.notes), choices or {}, stored.config.vocab_size
    for item in stored.architecture.assumed:
        said, chosen = getattr(stored.config, item.name), choices.get(item.name)
        if chosen is None and stored.assumed.get(item.name) == "format":
            other = next(shown for shown, value in zip(item.shown, item.values, strict=True) if value != said)
            notes.append(
                f"{item.name.upper()} taken as {said}, as in {stored.format}: the file does not say. "
                f"If trained otherwise: --{item.name} {other}"
            )
        if chosen not in (None, said) and stored.assumed.get(item.name) == "checkpoint":
            notes.append(f"--{item.name} {chosen} overrides the checkpoint, which says {said}")
    if vocab_size is None and GPT2_VOCAB < V < GPT2_VOCAB + 256 and V % 64 == 0:
        notes.append(
            f"the vocabulary looks padded, {V} rows for GPT-2's {GPT2_VOCAB} tokens: pass --vocab-size {GPT2_VOCAB}"
        )
    if dtypes := sorted({dtype_name(weight) for weight in stored.weights.values()} - {"float32"}):
        notes.append(f"weights stored in {' and '.join(dtypes)}, cast to float32")
    return tuple(notes)


def sha256_of(files: tuple[Path, ...]) -> str:
    """The file's SHA-256; of several, that of their sorted `name sha256` lines."""
    hashes = []
    for path in files:
        with open_regular(path) as file:
            hashes.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    if len(hashes) == 1:
        return hashes[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(hashes)).encode()).hexdigest()


def build(
    stored: Stored,
    choices: Choices | None = None,
    vocab_size: int | None = None,
    block_size: int | None = None,
) -> Checkpoint:
    """Compare what was opened with its config, cut it to size, and build the model.

    Args:
        choices: values of assumptions that override what the checkpoint or its format says.

    Raises:
        CheckpointError: the weights are not those that the config calls for, or a size is more than the checkpoint's.
    """
    choices = choices or {}
    _check_choices(stored, choices)
    check_weights(stored)  # whole, before anything is cut from it
    config = replace(
        stored.config,
        **{item.name: choices[item.name] for item in stored.architecture.assumed if item.name in choices},
        vocab_size=_shrunk(stored.path, "vocab_size", vocab_size, stored.config.vocab_size),
        block_size=_shrunk(stored.path, "block_size", block_size, stored.config.block_size),
    )
    return Checkpoint(
        model=assemble(stored.architecture, config, stored.weights),
        architecture=stored.architecture,
        config=config,
        format=stored.format,
        block_size=config.block_size,
        vocab_size=config.vocab_size,
        assumed={**stored.assumed, **dict.fromkeys(choices, "option")},
        sha256=sha256_of(stored.files),
        tokenizer=stored.tokenizer,
        text=stored.text,
        notes=notes_of(stored, choices, vocab_size),
    )


def _check_choices(stored: Stored, choices: Choices) -> None:
    """Nobody chooses what the checkpoint says, or what its architecture does not have."""
    free = {item.name for item in stored.architecture.assumed}
    for name, value in choices.items():
        if name not in free and stored.assumed.get(name) != "option":
            said = getattr(stored.config, name, None)
            known = "its architecture has none" if said is None else f"it says {name} {said} itself"
            raise CheckpointError(
                f"{stored.path}: {name} is {value}, but this checkpoint does not leave it open: {known}."
            )


def _shrunk(path: Path, name: str, wanted: int | None, stored: int) -> int:
    if wanted is not None and wanted > stored:
        raise CheckpointError(f"{path}: {name} {wanted} is more than the checkpoint has, {stored}; it can only shrink.")
    return stored if wanted is None else wanted


def _check_options(choices: Choices, vocab_size: int | None, block_size: int | None) -> None:
    for item in ASSUMPTIONS:
        if item.name in choices:
            try:
                item.check(choices[item.name])
            except ValueError as error:
                raise CheckpointError(f"{error}.") from error
    for name, value in (("vocab_size", vocab_size), ("block_size", block_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CheckpointError(f"{name} is {value!r}; expected a positive integer.")
