"""What the caller passes: token ids, checked and made into the one form every backend gets, and buffers for outputs.

Nothing is left to a backend: past block_size ONNX Runtime reports a broadcast error from some `Add`, negative ids wrap
silently, and on CUDA an id past the vocabulary reads zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.errors import ContextLengthError, InputError, shown

PADDING_ID = 0  # any valid id: nothing before the padding attends to it


@dataclass(frozen=True, eq=False)
class Batch:
    """Validated ids: every id is in the vocabulary, every row has 1 ... T real tokens, then padding."""

    ids: NDArray[np.int64]  # (B,T), C-contiguous
    lengths: NDArray[np.int64]  # (B,), tokens of each row before the padding
    ragged: bool = False  # there may be padding

    @property
    def shape(self) -> tuple[int, int]:
        B, T = self.ids.shape
        return B, T


def to_batch(ids: object, *, vocab_size: int, block_size: int | None) -> Batch:
    """Validate `ids` and right-pad ragged rows. An int64 C-contiguous array is used as it is, without a copy.

    Args:
        ids: (B,T) array of any integer dtype, or a list of B rows, each a list or 1-D array of 1 or more ints.
        vocab_size: ids are 0 ... vocab_size-1.
        block_size: longest row; None: unknown, so not checked.

    Raises:
        ContextLengthError: a row is longer than block_size.
        InputError: anything else that is not such ids; the message names the row and column where there is one.
    """
    if ids is None or isinstance(ids, str | bytes | bytearray):
        raise InputError(
            f"ids is {_kind(ids)}; expected (B,T) integer token ids. Encode text with the model's tokenizer."
        )
    if not isinstance(ids, np.ndarray) and (hasattr(ids, "__array__") or isinstance(ids, memoryview)):
        ids = _as_array(ids)
    if isinstance(ids, np.ndarray):
        batch = _from_array(ids, block_size)
    elif isinstance(ids, Sequence):
        batch = _from_rows(ids, vocab_size, block_size)
    else:
        raise InputError(f"ids is {_kind(ids)}; expected a (B,T) integer array or a list of rows of ints.")
    _check_range(batch, vocab_size)
    # after the check of the range: it is what makes the conversion of a uint64 safe
    checked = np.ascontiguousarray(batch.ids, dtype=np.int64)
    return batch if checked is batch.ids else Batch(checked, batch.lengths, batch.ragged)


def is_count(value: object, least: int = 1) -> bool:
    """Is it an integer of `least` or more, not a bool, that 63 bits hold?"""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= int(value) < 1 << 63


def items_of(value: object) -> list[Any] | None:
    """What a list, a set or an array holds; None: it is none of these, and a text is none."""
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else None
    return list(value) if isinstance(value, Collection) and not isinstance(value, str | bytes) else None


def check_predicted(batch: Batch, vocab_size: int) -> None:
    """Every id that is to be scored must have a logit, which one that only ever begins a text has not.

    Raises:
        InputError: one of a row's second to last ids is `vocab_size` or more.
    """
    unscored = np.argwhere(batch.ids[:, 1:] >= vocab_size)
    if len(unscored):
        b, t = (int(i) for i in unscored[0] + (0, 1))
        raise InputError(
            f"ids[{b}][{t}] is {batch.ids[b, t]}, which the model takes and never predicts: its logits end at id "
            f"{vocab_size - 1}. Such an id has no score; it may only begin a row."
        )


def _from_array(ids: NDArray[Any], block_size: int | None) -> Batch:
    if isinstance(ids, np.ma.MaskedArray):
        raise InputError("ids is a masked array; expected ids that all count. For ragged rows pass a list of lists.")
    if ids.dtype.kind not in "iu":
        advice = " For ragged rows pass a list of lists." if ids.dtype.kind == "O" else " Convert it to int64."
        raise InputError(f"ids has dtype {ids.dtype}; expected integers.{advice}")
    if ids.ndim != 2:
        advice = " For one row pass [ids]." if ids.ndim == 1 else ""
        raise InputError(f"ids has shape {ids.shape}; expected 2 dimensions (B,T).{advice}")
    B, T = ids.shape
    if B == 0:
        raise InputError(f"ids has shape {ids.shape}, an empty batch; expected B of 1 or more.")
    _check_length(T, block_size, "each row of ids")
    return Batch(ids, np.full(B, T, dtype=np.int64))


def _from_rows(rows: Sequence[Any], vocab_size: int, block_size: int | None) -> Batch:
    if len(rows) == 0:
        raise InputError("ids is empty, a batch without rows; expected B of 1 or more.")
    if isinstance(rows[0], int | np.integer) and not isinstance(rows[0], bool):
        raise InputError("ids is a flat list; expected a list of B rows. For one row pass [ids].")
    arrays = [_row(row, b, vocab_size) for b, row in enumerate(rows)]
    for b, array in enumerate(arrays):
        _check_length(len(array), block_size, f"row {b} of ids")
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    # uint64 only where a row came so: mixing it with int64 would give floats
    dtype = np.uint64 if any(array.dtype == np.uint64 for array in arrays) else np.int64
    ids: NDArray[Any] = np.full((len(arrays), int(lengths.max())), PADDING_ID, dtype=dtype)
    for b, array in enumerate(arrays):
        if dtype == np.uint64 and array.min() < 0:  # would wrap below, and the message name another value
            raise _out_of_range(b, int(np.argmax(array < 0)), int(array[array < 0][0]), vocab_size)
        ids[b, : len(array)] = array
    return Batch(ids, lengths, ragged=any(len(array) != ids.shape[1] for array in arrays))


def _row(row: Any, b: int, vocab_size: int) -> NDArray[Any]:
    """One row as a 1-D integer array."""
    if isinstance(row, np.ndarray) or (hasattr(row, "__array__") and not isinstance(row, np.generic)):
        array = _as_array(row)
        if isinstance(row, np.ma.MaskedArray):
            raise InputError(f"row {b} of ids is a masked array; expected ids that all count.")
        if array.ndim == 1 and len(array) == 0:
            raise _empty_row(b)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise InputError(f"row {b} of ids has dtype {array.dtype} and shape {array.shape}; expected 1-D integers.")
        return array
    if not isinstance(row, Sequence) or isinstance(row, str | bytes | bytearray):
        raise InputError(f"row {b} of ids is {_kind(row)}; expected a list of ints.")
    row = list(islice(row, len(row)))  # once, whatever its length says when it is asked again
    if not row:
        raise _empty_row(b)
    # numpy would read True as 1, and integers past 64 bits as floats or objects
    for t, value in enumerate(row):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise InputError(f"ids[{b}][{t}] is {_kind(value)}; expected an int.")
    try:
        return np.array(row, dtype=np.int64)
    except OverflowError:
        t, value = next((t, int(value)) for t, value in enumerate(row) if not 0 <= value < vocab_size)
        raise _out_of_range(b, t, value, vocab_size) from None


def _as_array(value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # a tensor on a GPU, say: what it raises is its own library's affair
        raise InputError(
            f"ids is {_kind(value)} and does not convert to numpy ({error}). Pass a numpy array."
        ) from error


def _check_length(length: int, block_size: int | None, what: str) -> None:
    if length == 0:
        raise InputError(f"{what} is empty; expected T of 1 or more.")
    if block_size is not None and length > block_size:
        raise ContextLengthError(
            f"{what} has {length} tokens; the model's block_size is {block_size}. Keep its last {block_size}."
        )


def _check_range(batch: Batch, vocab_size: int) -> None:
    ids = batch.ids
    # two passes without a temporary; in the ids' own dtype, so that no large uint64 wraps
    if int(ids.min()) >= 0 and int(ids.max()) < vocab_size:
        return
    b, t = (int(i) for i in np.unravel_index(np.argmax((ids < 0) | (ids >= vocab_size)), ids.shape))
    raise _out_of_range(b, t, int(ids[b, t]), vocab_size)


def _out_of_range(b: int, t: int, value: int, vocab_size: int) -> InputError:
    return InputError(
        f"ids[{b}][{t}] is {shown(value)}; expected 0 <= id < {vocab_size}, the model's vocab_size. "
        "Was it encoded with another model's tokenizer?"
    )


def _empty_row(b: int) -> InputError:
    return InputError(f"row {b} of ids is empty; expected 1 or more tokens in every row. Leave the row out.")


def _kind(value: object) -> str:
    """`value` for a message: what it is, and itself where it is short."""
    if value is None:
        return "None"
    text = shown(value) if isinstance(value, str | bytes | int | float | np.generic) else ""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}" + (f" ({text})" if 0 < len(text) <= 40 else "")


def check_out(out: object, shape: tuple[int, ...]) -> None:
    """See that `out` is float32 of this shape, C-contiguous and writable.

    Raises:
        InputError: it is not; the message says how.
    """
    expected = f"expected a writable, C-contiguous float32 array of shape {shape}"
    if not isinstance(out, np.ndarray):
        raise InputError(f"out is {_kind(out)}; {expected}.")
    if out.dtype != np.float32 or out.shape != shape:
        raise InputError(f"out is {out.dtype} {out.shape}; {expected}.")
    for flaw, found in (
        ("read-only", not out.flags.writeable),
        ("not contiguous", not out.flags.c_contiguous),
        ("unaligned", not out.flags.aligned),
    ):
        if found:
            raise InputError(f"out is {flaw}; {expected}.")
