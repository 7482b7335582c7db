"""Every kind of file is read to the ids that were put into it; what is damaged is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from gptexport.score import readers
from gptexport.score.arrow import import_pyarrow
from gptexport.score.documents import Chunk, Limits, Reading, encoder_of
from gptexport.score.readers import read_files
from gptexport_runtime.errors import InputError
from gptexport_runtime.text import load_tokenizer

LIMITS = Limits(ids=256, predicted=256)
TEXTS = ["Once upon a time", "größer\n", "x"]
IDS = [list(text.encode()) for text in TEXTS]


def read(*paths: Path, limits: Limits = LIMITS, **how: Any) -> list[tuple[str, list[int], int | None]]:
    """Of each document its name, ids and bytes."""
    found: list[tuple[str, list[int], int | None]] = []
    open_chunks: list[Chunk] = []
    for chunk in read_files(paths, Reading(**how), limits, encoder_of(load_tokenizer("bytes"))):
        assert chunk.first == (not open_chunks)
        open_chunks.append(chunk)
        if chunk.last:
            ids = [int(i) for part in open_chunks for i in part.ids]
            sizes = [part.bytes for part in open_chunks]
            found.append((chunk.name, ids, sum(size for size in sizes if size is not None)))
            open_chunks = []
    assert not open_chunks
    return found


def jsonl(path: Path, field: str, values: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps({"id": 1, field: value}) + "\n" for value in values), encoding="utf-8")
    return path


def table(path: Path, field: str, values: Sequence[object]) -> Path:
    parquet.write_table(arrow.table({"n": list(range(len(values))), field: values}), path, row_group_size=2)
    return path


def llmc(path: Path, ids: Sequence[int], promised: int | None = None) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids) if promised is None else promised
    path.write_bytes(header.tobytes() + np.array(ids, "<u2").tobytes())
    return path


def npy(path: Path, ids: np.ndarray[Any, Any]) -> Path:
    np.save(path, ids)
    return path


MANY: dict[str, Callable[[Path], Path]] = {
    "jsonl text": lambda f: jsonl(f / "a.jsonl", "text", TEXTS),
    "jsonl ids": lambda f: jsonl(f / "a.ndjson", "tokens", IDS),
    "parquet text": lambda f: table(f / "a.parquet", "text", TEXTS),
    "parquet ids": lambda f: table(f / "a.parquet", "input_ids", IDS),
}


@pytest.mark.parametrize("kind", MANY)
def test_files_of_documents(tmp_path: Path, kind: str) -> None:
    path = MANY[kind](tmp_path)
    assert read(path) == [(f"{path}:{n}", ids, len(ids)) for n, ids in enumerate(IDS, 1)]


def test_a_text_is_a_document_or_each_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\nthree")
    assert read(path) == [(str(path), list(b"one\r\n\nthree"), 11)]
    assert read(path, lines=True) == [(f"{path}:1", list(b"one"), 3), (f"{path}:3", list(b"three"), 5)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = _bytes(tmp_path / "a.txt", b"\xef\xbb\xbfone")
    assert read(path) == [(str(path), list(b"one"), 3)]
    assert read(path, lines=True) == [(f"{path}:1", list(b"one"), 3)]
    with_mark = _bytes(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n')
    assert read(with_mark) == [(f"{with_mark}:1", list(b"one"), 3)]


FLAT = [5, 9, 1, 2, 9, 9, 3]
TOKENS: dict[str, Callable[[Path], Path]] = {
    "a.bin": lambda p: _bytes(p, np.array(FLAT, "<u2").tobytes()),
    "b.bin": lambda p: llmc(p, FLAT),
    "a.npy": lambda p: npy(p, np.array(FLAT, np.uint16)),
}


TEXT_FILES: dict[str, Callable[[Path], Path]] = {
    "a.txt": lambda p: _bytes(p, b"abc\ndef"),
    "a.jsonl": lambda p: jsonl(p, "text", TEXTS),
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_token_files_are_one_document_or_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    monkeypatch.setattr(readers, "AT_ONCE", at_once)
    path = TOKENS[name](tmp_path / name)
    assert read(path) == [(str(path), FLAT, 7)]
    split = [[5], [9, 1, 2], [9], [9, 3]]
    assert read(path, split_at=9) == [(f"{path}:{n}", ids, len(ids)) for n, ids in enumerate(split, 1)]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.npy", "b.bin"])
def test_compressed_files_are_the_same(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / name
    make = {**TOKENS, **TEXT_FILES}[name]
    plain = read(make(path))
    packed = path.with_name(f"{name}.{suffix}")
    if suffix == "gz":
        packed.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with import_pyarrow().output_stream(packed, compression="zstd") as stream:
            stream.write(path.read_bytes())
    assert [row[1:] for row in read(packed)] == [row[1:] for row in plain]
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot be read|cut off|is not|holds"):
        read(packed)


def test_an_id_is_put_before_every_document_and_is_no_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", "text", ["ab", ""])
    assert read(path, begin_with=7) == [(f"{path}:1", [7, 97, 98], 2), (f"{path}:2", [7], 0)]


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "odd": (lambda f: _bytes(f / "a.bin", b"abc"), "cut off"),
    "empty": (lambda f: _bytes(f / "a.bin", b""), "0 tokens"),
    "short": (lambda f: llmc(f / "a.bin", [1, 2], 3), "2 tokens; expected 3"),
    "high": (lambda f: llmc(f / "a.bin", [1, 256]), "the id 256"),
    "below": (lambda f: jsonl(f / "a.jsonl", "ids", [[1], [-3]]), r"a.jsonl:2 holds the id -3"),
    "far below": (lambda f: jsonl(f / "a.jsonl", "ids", [[1, 2, -1000]]), r"a.jsonl:1 holds the id -1000"),
    "beyond": (lambda f: jsonl(f / "a.jsonl", "ids", [[2**40]]), "the id 2147483647"),
    "floats": (lambda f: jsonl(f / "a.jsonl", "ids", [[1.5]]), r"holds \[1.5\]; expected a text"),
    "nested": (lambda f: jsonl(f / "a.jsonl", "ids", [[[1], [2, 3]]]), "expected a text"),
    "number": (lambda f: jsonl(f / "a.jsonl", "text", [3]), "holds 3; expected a text"),
    "null": (lambda f: table(f / "a.parquet", "ids", [[1], None]), "holds None"),
    "field": (lambda f: jsonl(f / "a.jsonl", "body", ["x"]), "has the fields 'id, body'"),
    "no object": (lambda f: _bytes(f / "a.jsonl", b"[1]\n"), "a.jsonl:1 is list"),
    "no json": (lambda f: _bytes(f / "a.jsonl", b"{}x\n"), "a.jsonl:1 is not JSON"),
    "no utf-8": (lambda f: _bytes(f / "a.txt", b"ab\xff"), "not UTF-8: invalid start byte at byte 2"),
    "no parquet": (lambda f: _bytes(f / "a.parquet", b"PAR"), "cannot be read"),
    "no npy": (lambda f: _bytes(f / "a.npy", b"abc"), "cannot be read"),
    "axes": (lambda f: npy(f / "a.npy", np.zeros((2, 2), int)), r"shape \(2, 2\)"),
    "kind": (lambda f: _bytes(f / "a.csv", b"x"), "of no kind that score reads"),
}


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message) as raised:
        read(make(tmp_path))
    assert str(raised.value).endswith((".", "?"))


def test_an_id_without_a_logit_may_only_begin_a_document(tmp_path: Path) -> None:
    limits = Limits(ids=256, predicted=100)
    assert read(jsonl(tmp_path / "a.jsonl", "ids", [[200, 3]]), limits=limits)[0][1] == [200, 3]
    with pytest.raises(InputError, match="the id 200; expected 0 <= id < 100"):
        read(jsonl(tmp_path / "a.jsonl", "ids", [[3, 200]]), limits=limits)


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", "text", ["x"])
    with pytest.raises(InputError, match="the bundle has no tokenizer"):
        list(read_files([path], Reading(), LIMITS, encoder_of(None)))
