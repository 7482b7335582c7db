"""Is an open ONNX Runtime session of the head that it is taken for, and what are its limits?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.output import FLOAT32, FLOAT_TYPES, FloatType, Output
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.model import ModelInfo, read_limit
from gptexport_runtime.contract.names import (
    AXIS_B,
    AXIS_SCORED,
    AXIS_T,
    AXIS_V,
    LOGITS,
    META_BLOCK_SIZE,
    META_ROW,
    META_VOCAB_SIZE,
)
from gptexport_runtime.contract.seal import is_of_another_export
from gptexport_runtime.errors import ArtifactError


@dataclass(frozen=True)
class GraphSignature:
    """What an open graph says of itself."""

    info: ModelInfo
    output: str  # its name
    axes: tuple[str | int, ...]  # of the output: a name, or a number that the file holds
    row: int = 0  # see Output
    kind: FloatType = FLOAT32

    def output_shape(self, B: int, T: int) -> tuple[int, ...]:
        """Of the output, for ids (B,T)."""
        sizes = {AXIS_B: B, AXIS_T: T, AXIS_SCORED: T - 1}
        return tuple([axis if isinstance(axis, int) else sizes[axis] for axis in self.axes])

    def output_of(self, B: int, T: int) -> Output:
        """How the output of ids (B,T) lies in memory."""
        return Output(self.output, self.output_shape(B, T), self.row, self.kind)


FREE = (AXIS_B, AXIS_T, AXIS_SCORED)


def read_signature(session: Any, path: Path, head: Head) -> GraphSignature:
    """The limits of a graph of this head, and the shape of its output.

    Raises:
        ArtifactError: inputs or outputs are not the contract's, or the graph does not tell its vocabulary.
    """
    expected = head.signature
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if head.cached:  # the cache comes last, and is checked by the one who allocates it
        inputs, outputs = inputs[: len(expected.inputs)], outputs[:1]
    axes = [*expected.inputs.items(), (expected.output, expected.output_axes)]
    if (
        [(value.name, len(value.shape)) for value in (*inputs, *outputs)] != [(n, len(named)) for n, named in axes]
        or {value.type for value in inputs} != {"tensor(int64)"}
        or {value.type for value in outputs} - ({*FLOAT_TYPES} if head.as_computed else {FLOAT32.graph})
        or not all(map(_fits, [axis for _, named in axes for axis in named], _dims((*inputs, *outputs))))
    ):
        raise ArtifactError(
            f"{path} is not a {head} graph: it has {_text(inputs)} -> {_text(outputs)}; "
            f"expected {expected} with B and T free. Export it with `gptexport onnx`."
        )
    dims = dict(zip(expected.output_axes, outputs[0].shape, strict=True))
    meta = _metadata(session, path)
    row = read_limit(meta, META_ROW, path) if head.as_computed else None
    info = _limits(meta, dims.get(AXIS_V), row, path)
    sizes = {**dims, AXIS_V: info.vocab_size, **{axis: axis for axis in FREE}}
    axes_of_output = tuple(sizes[axis] for axis in expected.output_axes)
    return GraphSignature(info, expected.output, axes_of_output, row or 0, FLOAT_TYPES[outputs[0].type])


def check_weights(session: Any, path: Path, weights: Path | None) -> None:
    """See that the weights that the graph has read are of its own export, as far as both say so.

    Raises:
        ArtifactError: they are of another.
    """
    if weights is not None and is_of_another_export(weights, _metadata(session, path)):
        raise ArtifactError(
            f"{weights} belongs to another export than {path.name}: it was replaced, or half of one was copied over "
            "the other. Copy all files again, or export again."
        )


def _metadata(session: Any, path: Path) -> Mapping[str, str]:
    try:
        found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{path} is damaged: its metadata are not UTF-8 ({error.reason}). Copy it again, or export again."
        ) from error
    return found


def _dims(values: Any) -> list[Any]:
    return [dim for value in values for dim in value.shape]


def _fits(axis: str, dim: object) -> bool:
    """A number in the file where there must be one, a name where any size must do. V may be in the metadata instead."""
    return axis == AXIS_V or isinstance(dim, int) != (axis in FREE)


def _limits(meta: Mapping[str, str], V: object, row: int | None, path: Path) -> ModelInfo:
    """`V`: of the output, as the file has it; `row`: what the metadata says that it is."""
    block_size, vocab_size = read_limit(meta, META_BLOCK_SIZE, path), read_limit(meta, META_VOCAB_SIZE, path)
    if row is not None:
        if row != V or vocab_size is None or vocab_size > row:
            raise ArtifactError(
                f"{path} contradicts itself: {META_ROW} is {row} and {META_VOCAB_SIZE} {vocab_size}, but rows of its "
                f"{LOGITS} have {V} numbers. Export again."
            )
        return ModelInfo(vocab_size=vocab_size, block_size=block_size)
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


def _text(values: Any) -> str:
    return ", ".join(
        f"{value.name} {value.type} [{','.join('?' if dim is None else str(dim) for dim in value.shape)}]"
        for value in values
    )
