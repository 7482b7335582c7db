"""Is an open ONNX Runtime session of the kind that it is taken for, and what are its limits?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptexport_runtime.contract import heads
from gptexport_runtime.contract.manifest import ModelInfo
from gptexport_runtime.contract.names import LOGITS, META_BLOCK_SIZE, META_VOCAB_SIZE
from gptexport_runtime.errors import ArtifactError


def read_contract(session: Any, path: Path, kind: str = heads.LOGITS.name) -> ModelInfo:
    """The limits of a graph of this kind.

    Raises:
        ArtifactError: inputs or outputs are not the contract's, or the graph does not tell its vocabulary.
    """
    expected = heads.HEADS[kind].signature
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if kind == heads.DECODE.name:  # the cache comes last, and is checked by the one who allocates it
        inputs, outputs = inputs[: len(expected.inputs)], outputs[:1]
    free = all(not isinstance(dim, int) for value in (*inputs, *outputs) for dim in _batch_axes(value))
    if (
        [(value.name, len(value.shape)) for value in inputs] != [(n, len(axes)) for n, axes in expected.inputs.items()]
        or [(value.name, len(value.shape)) for value in outputs] != [(expected.output, len(expected.output_axes))]
        or {value.type for value in inputs} != {"tensor(int64)"}
        or {value.type for value in outputs} != {"tensor(float)"}
        or not free
    ):
        raise ArtifactError(
            f"{path} is not a {kind} graph: it has {_signature(inputs)} -> {_signature(outputs)}; "
            f"expected {expected} with B and T free. Export it with `gptexport onnx`."
        )
    meta = session.get_modelmeta().custom_metadata_map
    V = outputs[0].shape[-1] if expected.output == LOGITS else None
    block_size, vocab_size = _limit(meta, META_BLOCK_SIZE, path), _limit(meta, META_VOCAB_SIZE, path)
    if isinstance(V, int) and vocab_size not in (None, V):
        raise ArtifactError(
            f"{path} contradicts itself: {META_VOCAB_SIZE} is {vocab_size}, but its {LOGITS} have V={V}. Export again."
        )
    vocab_size = vocab_size or (V if isinstance(V, int) else None)
    if vocab_size is None:
        raise ArtifactError(
            f"{path} does not tell its vocab_size: V is free and {META_VOCAB_SIZE} missing. Export again."
        )
    return ModelInfo(vocab_size=vocab_size, block_size=block_size)


def _batch_axes(value: Any) -> list[Any]:
    """B, and T where the value has it: all axes but the logits' vocabulary."""
    return list(value.shape[:-1] if value.name == LOGITS else value.shape)


def _limit(meta: dict[str, str], key: str, path: Path) -> int | None:
    text = meta.get(key)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ArtifactError(f"{path}: {key} is {text!r}; expected a positive integer. Export again.")
    return int(text)


def _signature(values: Any) -> str:
    return ", ".join(
        f"{value.name} {value.type} [{','.join('?' if dim is None else str(dim) for dim in value.shape)}]"
        for value in values
    )
