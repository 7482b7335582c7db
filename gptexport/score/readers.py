"""Documents out of the files that people have: one reader for each kind of file.

A token file is never held whole, however long a document in it is. A text is, because a tokenizer needs all of it.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gptexport.parity.measure.token_files import DAMAGED, LLAMA_MAGIC, LLMC_HEADER_BYTES, LLMC_MAGIC
from gptexport.score.arrow import import_pyarrow
from gptexport.score.documents import Chunk, Encoder, Ids, Input, Limits, Reading
from gptexport_runtime.errors import InputError, shown

AT_ONCE = 1 << 16  # tokens of a token file that are read at a time
ROWS = 256  # of a Parquet file that are read at a time
FIELDS = ("text", "ids", "input_ids", "tokens")  # of JSONL and Parquet: the first that is there


def read_files(paths: Sequence[Path], how: Reading, limits: Limits, encoder: Encoder) -> Iterator[Chunk]:
    """The documents of all files, in order.

    Raises:
        InputError: a file is of no known kind or damaged, or holds an id that the model does not take.
    """
    before = 0
    for path in paths:
        try:
            file = Input(path, before)
            try:
                for chunk in _reader(file)(file, how, encoder):
                    _check(chunk, limits)
                    yield _begun(chunk, how.begin_with)
            finally:
                file.close()
        except InputError:  # a ValueError, but ours
            raise
        except DAMAGED as error:
            raise InputError(f"{path} cannot be read: {error}.") from error
        before += path.stat().st_size


def _reader(file: Input) -> Callable[[Input, Reading, Encoder], Iterator[Chunk]]:
    reader = READERS.get(file.suffix)
    if reader is None:
        raise InputError(
            f"{file.path} is of no kind that score reads: expected {', '.join(READERS)}, also with .gz or .zst."
        )
    return reader


def _begun(chunk: Chunk, begin_with: int | None) -> Chunk:
    if begin_with is None or not chunk.first:
        return chunk
    ids = np.concatenate([np.array([begin_with], np.int32), chunk.ids])
    return Chunk(chunk.name, ids, chunk.bytes, chunk.first, chunk.last, chunk.read)


def _check(chunk: Chunk, limits: Limits) -> None:
    wrong = (chunk.ids < 0) | (chunk.ids >= limits.ids)
    if limits.ids > limits.predicted:
        wrong[int(chunk.first) :] |= chunk.ids[int(chunk.first) :] >= limits.predicted
    if wrong.any():
        raise InputError(
            f"{chunk.name} holds the id {int(chunk.ids[np.argmax(wrong)])}; expected 0 <= id < {limits.predicted}, "
            "the model's vocab_size. Was it encoded with another model's tokenizer?"
        )


def _text(file: Input, how: Reading, encoder: Encoder) -> Iterator[Chunk]:
    if file.stream.peek(3).startswith(BOM_UTF8):  # some editors mark UTF-8 so; it is no part of the text
        file.stream.read(len(BOM_UTF8))
    if how.lines:
        for number, line in enumerate(file.stream, 1):
            name = f"{file.path}:{number}"
            text = _decoded(line, name).rstrip("\r\n")
            if text:
                yield _whole(file, name, text, encoder)
    else:
        yield _whole(file, str(file.path), _decoded(file.stream.read(), str(file.path)), encoder)


def _jsonl(file: Input, how: Reading, encoder: Encoder) -> Iterator[Chunk]:
    for number, line in enumerate(file.stream, 1):
        name = f"{file.path}:{number}"
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name} is not JSON: {error}.") from error
            if not isinstance(record, dict):
                raise InputError(f"{name} is {type(record).__name__}; expected an object with a text or ids.")
            yield _whole(file, name, record[_field(record, how, name)], encoder)


def _parquet(file: Input, how: Reading, encoder: Encoder) -> Iterator[Chunk]:
    table = import_pyarrow().parquet.ParquetFile(file.path)
    field = _field(table.schema_arrow.names, how, str(file.path))
    count = 0
    for batch in table.iter_batches(batch_size=ROWS, columns=[field]):
        for value in _values(batch.column(0)):
            count += 1
            file.at(count / table.metadata.num_rows)
            yield _whole(file, f"{file.path}:{count}", value, encoder)


def _values(column: Any) -> Iterator[Any]:
    """Of an Arrow array: texts, or arrays of ids without a Python object for each."""
    arrow = import_pyarrow().types
    if not (arrow.is_list(column.type) or arrow.is_large_list(column.type)):
        yield from column.to_pylist()
        return
    for scalar in column:
        values = scalar.values
        yield None if values is None else values.to_numpy(zero_copy_only=False)


def _field(names: Iterable[str], how: Reading, where: str) -> str:
    there = list(names)
    found = next((name for name in ([how.field] if how.field else FIELDS) if name in there), None)
    if found is None:
        raise InputError(
            f"{where} has the fields {shown(', '.join(there))}; expected {how.field or ', '.join(FIELDS)}. "
            "Name the one that holds text or ids by --field."
        )
    return found


def _whole(file: Input, name: str, value: object, encoder: Encoder) -> Chunk:
    """A document that is one chunk, of its text or its ids."""
    if isinstance(value, str):
        ids, size = encoder.of_text(value, name)
        return Chunk(name, ids, size, True, True, file.read)
    try:
        array = np.asarray(value) if value is not None and len(cast(Any, value)) else np.zeros(0, np.int32)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros((0, 0))
    if value is None or array.dtype.kind not in "iu" or array.ndim != 1:
        raise InputError(f"{name} holds {shown(value)}; expected a text, or a list of token ids.")
    return Chunk(name, _narrow(array), encoder.bytes_of(array), True, True, file.read)


def _bin(file: Input, how: Reading, encoder: Encoder) -> Iterator[Chunk]:
    head = file.stream.peek(8)[:8]
    magic, version = np.frombuffer(head, "<i4") if len(head) == 8 else (0, 0)
    kinds = {(LLMC_MAGIC, 1): "<u2", (LLAMA_MAGIC, 7): "<u4"}
    dtype = np.dtype(kinds.get((int(magic), int(version)), "<u2"))
    promised = None
    if (int(magic), int(version)) in kinds:
        promised = int(np.frombuffer(file.stream.read(LLMC_HEADER_BYTES), "<i4")[2])
    yield from _documents(file, _arrays(file, dtype, promised), how, encoder)


def _npy(file: Input, how: Reading, encoder: Encoder) -> Iterator[Chunk]:
    version = np.lib.format.read_magic(file.stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file.stream)
    if len(shape) != 1 or dtype.kind not in "iu":
        raise InputError(f"{file.path} holds {dtype} of shape {shape}; expected a row of integers.")
    yield from _documents(file, _arrays(file, dtype, shape[0]), how, encoder)


def _arrays(file: Input, dtype: np.dtype[Any], promised: int | None) -> Iterator[NDArray[Any]]:
    """The ids of a token file, some at a time.

    Raises:
        InputError: the file ends within an id, or before its header says.
    """
    count = 0
    while data := file.stream.read(AT_ONCE * dtype.itemsize):
        if len(data) % dtype.itemsize:
            raise InputError(f"{file.path} ends within a token, each of {dtype.itemsize} bytes: it is cut off.")
        count += len(data) // dtype.itemsize
        yield np.frombuffer(data, dtype)
    if not count or (promised is not None and count != promised):
        expected = "some" if promised is None else str(promised)
        raise InputError(f"{file.path} holds {count} tokens; expected {expected}. Copy it again.")


def _documents(file: Input, arrays: Iterator[NDArray[Any]], how: Reading, encoder: Encoder) -> Iterator[Chunk]:
    """One document, or those that begin at each `split_at`."""
    held, first, number = None, True, 1
    for array in arrays:
        cuts = np.flatnonzero(array == how.split_at) if how.split_at is not None else np.zeros(0, np.intp)
        for part in np.split(array, cuts):
            if len(part):
                begins = how.split_at is not None and part[0] == how.split_at
                if held is not None:
                    yield _part(file, number, held, how, encoder, (first, begins))
                    number += begins
                    first = begins
                held = part
    if held is not None:
        yield _part(file, number, held, how, encoder, (first, True))


def _part(
    file: Input, number: int, ids: NDArray[Any], how: Reading, encoder: Encoder, ends: tuple[bool, bool]
) -> Chunk:
    name = str(file.path) if how.split_at is None else f"{file.path}:{number}"
    return Chunk(name, _narrow(ids), encoder.bytes_of(ids), *ends, file.read)


def _narrow(ids: NDArray[Any]) -> Ids:
    """As int32; an id that it does not hold is out of every vocabulary, and stays so."""
    held = np.iinfo(np.int32)
    return np.asarray(np.clip(ids, held.min if ids.dtype.kind == "i" else None, held.max), np.int32)


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: {error.reason} at byte {error.start}.") from error


READERS: dict[str, Callable[[Input, Reading, Encoder], Iterator[Chunk]]] = {
    ".txt": _text,
    ".bin": _bin,
    ".npy": _npy,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
