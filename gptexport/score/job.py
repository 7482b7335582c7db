"""Score files into a folder: settings first, a part for each shard, then all documents and the totals.

    OUT/score.json          what was asked for and measured; a later run goes on by it
    OUT/parts/part-*.parquet    a shard each, in the order of the input
    OUT/documents.parquet   a row for each document
    OUT/summary.json        totals

The settings include how many tokens are fed at once and by how many threads: what a kernel rounds may depend on the
shape of a batch, so that a run that goes on must make the same batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gptexport.artifacts import Artifact, describe_artifact
from gptexport.errors import OutputError, OutputExistsError
from gptexport.score.arrow import import_pyarrow
from gptexport.score.documents import Limits, Reading, encoder_of
from gptexport.score.readers import read_files
from gptexport.score.scorer import Logprobs, Scorer, measure_batch
from gptexport.score.tables import identity_of_part, part_file, write_documents, write_part
from gptexport.score.windows import Shard, cut_shards, cut_windows
from gptexport.staging import replace_file, sweep
from gptexport_runtime import Session, load
from gptexport_runtime.errors import GPTExportError, InputError
from gptexport_runtime.text import Tokenizer

FORMAT, FORMAT_VERSION = "gptexport-score", 1
SETTINGS, SUMMARY, DOCUMENTS, PARTS = "score.json", "summary.json", "documents.parquet", "parts"
SHARD_TOKENS = 1 << 18  # a part of the demo model takes a second or two, one of GPT-2 124M on a CPU some minutes
TOLERANCE = 1.005  # of perplexities: parity's gate for quantized weights

RunShards = Callable[[Scorer, Iterator[Shard]], Iterator[tuple[Shard, list[list[Logprobs]]]]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be scored, and how."""

    artifact: Path
    files: Sequence[Path]
    out: Path
    compare: Path | None = None
    reading: Reading = field(default_factory=Reading)
    stride: int | None = None  # None: half of block_size
    keep_logprobs: bool = False
    tolerance: float = TOLERANCE
    shard_tokens: int = SHARD_TOKENS
    batch_tokens: int | None = None  # None: measured
    device: str = "cpu"
    threads: int | None = None

    @property
    def artifacts(self) -> list[Path]:
        return [self.artifact] if self.compare is None else [self.artifact, self.compare]


@dataclass(frozen=True)
class Progress:
    """How far it is: of the shards that have been done, those of earlier runs included."""

    shards: int
    found: int  # of them were there already
    computed: int  # tokens that this run has fed
    scored: int
    read: int  # bytes of the input that are done
    size: int  # bytes of the input


def score_corpus(
    asked: Asked,
    tokenizer: Tokenizer | None,
    *,
    force: bool = False,
    run: RunShards | None = None,
    step: Callable[[str], None] = lambda _text: None,
    progress: Callable[[Progress], None] = lambda _now: None,
) -> dict[str, Any]:
    """Score every token of `asked.files`, or go on where an earlier run of the same was stopped.

    Args:
        tokenizer: of texts.
        force: begin anew what is there of other settings.
        run: who computes the shards; None: this process.

    Returns: the totals, as summary.json has them.

    Raises:
        InputError: a file or an argument is not as expected.
        OutputExistsError: `asked.out` holds something else, or scores of other settings, and `force` is not given.
        OutputError: it cannot be written.
        GPTExportError: the artifact cannot be opened, or fails.
    """
    import_pyarrow()
    artifacts = [describe_artifact(path) for path in asked.artifacts]
    limits, asked = _opened(asked, artifacts, tokenizer, step, force)
    chunks = read_files(asked.files, asked.reading, limits, encoder_of(tokenizer))
    assert asked.stride is not None and asked.batch_tokens is not None
    windows = cut_windows(chunks, limits.block_size, asked.stride)
    todo = _Unfinished(asked, cut_shards(windows, asked.shard_tokens), progress)
    scorer = Scorer([item.path for item in artifacts], asked.device, asked.threads, asked.batch_tokens)
    for shard, logprobs in (run or run_here)(scorer, iter(todo)):
        write_part(asked.out, shard, logprobs, asked.keep_logprobs)
        todo.done(shard)
    if not todo.count:
        raise InputError("the files hold no document. Pass others.")
    step(f"adding up {todo.count} parts")
    totals = write_documents(asked.out, todo.count, asked.compare is not None, asked.tolerance).to_dict()
    replace_file(asked.out / SUMMARY, _json({"format": FORMAT, "format_version": FORMAT_VERSION, **totals}))
    return totals


def run_here(scorer: Scorer, shards: Iterator[Shard]) -> Iterator[tuple[Shard, list[list[Logprobs]]]]:
    """Score shards in this process, and read the next one meanwhile."""
    with closing(scorer), ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, shards, None)
        while (shard := following.result()) is not None:
            following = reader.submit(next, shards, None)
            yield shard, scorer(shard)


class _Unfinished:
    """The shards that no earlier run has written, and how many there are of all."""

    def __init__(self, asked: Asked, shards: Iterable[Shard], progress: Callable[[Progress], None]) -> None:
        self._asked, self._shards, self._progress = asked, shards, progress
        self.count = 0
        self._lock = threading.Lock()  # shards are read by one thread and written by another
        size = sum(path.stat().st_size for path in asked.files)
        self._now = Progress(0, 0, 0, 0, 0, size)

    def __iter__(self) -> Iterator[Shard]:
        for shard in self._shards:
            self.count += 1
            path = part_file(self._asked.out, shard.number)
            there = identity_of_part(path)
            if there is None:
                yield shard
            elif there == shard.identity:
                self._say(shard, found=1)
            else:
                raise OutputExistsError(
                    f"{path} is of other documents than the files have now. Pass --force to score them all anew."
                )

    def done(self, shard: Shard) -> None:
        self._say(shard, computed=shard.computed, scored=shard.scored)

    def _say(self, shard: Shard, *, found: int = 0, computed: int = 0, scored: int = 0) -> None:
        with self._lock:
            now = self._now
            self._now = Progress(
                now.shards + 1,
                now.found + found,
                now.computed + computed,
                now.scored + scored,
                max(now.read, shard.read),
                now.size,
            )
            self._progress(self._now)


@dataclass(frozen=True)
class _Model(Limits):
    block_size: int


def _opened(
    asked: Asked,
    artifacts: Sequence[Artifact],
    tokenizer: Tokenizer | None,
    step: Callable[[str], None],
    force: bool,
) -> tuple[_Model, Asked]:
    """The model's limits, and what was asked for with every default put in. OUT is ready when it returns."""
    before = _settings_of(asked.out, force)
    with load(artifacts[0].path, device=asked.device, threads=asked.threads or before.get("threads")) as session:
        model = _model(session, artifacts)
        stride = asked.stride or max(1, model.block_size // 2)
        if stride >= model.block_size:
            raise InputError(
                f"stride is {stride}; expected less than the block_size of {model.block_size}, because "
                "a window's first token has nothing before it that would predict it."
            )
        asked = replace(asked, stride=stride, threads=session.threads)
        settings = _settings(asked, artifacts, tokenizer)
        asked = replace(asked, batch_tokens=asked.batch_tokens or before.get("batch_tokens"))
        if before and not force:
            _check_same(asked, before, settings)
        elif before:
            _clear(asked.out)
        if asked.batch_tokens is None:
            asked = replace(asked, batch_tokens=measure_batch(session, model.block_size, step))
    (asked.out / PARTS).mkdir(parents=True, exist_ok=True)
    sweep(asked.out / PARTS)
    if not before or force:
        replace_file(asked.out / SETTINGS, _json({**settings, "batch_tokens": asked.batch_tokens}))
    return model, asked


def _model(session: Session, artifacts: Sequence[Artifact]) -> _Model:
    block_size, V = session.config.block_size, session.config.vocab_size
    if block_size is None:
        raise InputError(f"{artifacts[0].path} does not tell its block_size. Export it as a bundle.")
    for other in artifacts[1:]:
        said = (other.model.get("vocab_size"), other.model.get("block_size"))
        if said != (V, block_size):
            raise InputError(
                f"{other.path} has vocab_size and block_size {said[0]} and {said[1]}; expected {V} and {block_size}, "
                f"as {artifacts[0].path} has. Compare models that take the same ids in the same windows."
            )
    return _Model(ids=session.config.ids, predicted=V, block_size=block_size)


def _settings(asked: Asked, artifacts: Sequence[Artifact], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All that the numbers depend on, but for the size of batches."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "artifacts": [{"path": str(item.path), **_stored(item)} for item in artifacts],
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in asked.files],
        "tokenizer": _fingerprint(tokenizer) if tokenizer is not None else None,
        "reading": asdict(asked.reading),
        "stride": asked.stride,
        "logprobs": asked.keep_logprobs,
        "tolerance": asked.tolerance,
        "shard_tokens": asked.shard_tokens,
        "device": asked.device,
        "threads": asked.threads,
    }


PROBE = (
    "Once upon a time, in 1984,\tthere were 12345 \u00e9l\u00e8ves: they'd don't\n\n  \u4f60\u597d! 'S  x=f(a_b)[-1];  "
)


def _fingerprint(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tells a tokenizer from another: the text of every id, and how a text is split."""
    found = hashlib.sha256()
    for i in range(tokenizer.size):
        found.update(tokenizer.decode([i]).encode("utf-8", "replace") + b"\0")
    with contextlib.suppress(GPTExportError):  # it lacks a character: then each is an id, and it splits nothing
        found.update(repr(tokenizer.encode(PROBE)).encode())
    return {"name": tokenizer.name, "ids": tokenizer.size, "sha256": found.hexdigest()}


def _stored(artifact: Artifact) -> dict[str, object]:
    """What tells an artifact from another: its hashes, or where it has none what its file is like."""
    status = artifact.path.stat()
    return {**artifact.facts()} or {"bytes": status.st_size, "modified": status.st_mtime_ns}


def _settings_of(out: Path, force: bool) -> dict[str, Any]:
    """What an earlier run has stored in the folder; empty: there was none, or it got no further.

    Raises:
        OutputExistsError: the folder is not empty, and not of scores.
    """
    if not os.path.lexists(out):
        return {}
    if not out.is_dir():
        raise OutputExistsError(f"{out} is not a folder; expected a new one, or one that score has begun.")
    sweep(out)
    try:
        found = json.loads((out / SETTINGS).read_bytes())
        if isinstance(found, dict) and found.get("format") == FORMAT:
            return found
    except FileNotFoundError:
        if not [path for path in out.iterdir() if path.name != PARTS or any(path.iterdir())]:
            return {}
    except ValueError:
        pass
    raise OutputExistsError(f"{out} is there, and holds something other than scores. Choose another folder.")


def _check_same(asked: Asked, before: dict[str, Any], settings: dict[str, Any]) -> None:
    wanted = {**settings, "batch_tokens": asked.batch_tokens}
    changed = [name for name, value in wanted.items() if before.get(name) != json.loads(json.dumps(value))]
    if changed:
        name = changed[0]
        raise OutputExistsError(
            f"{asked.out} was begun with another {name}: {json.dumps(before.get(name))}; now it is "
            f"{json.dumps(wanted[name])}. Choose another folder, or pass --force to begin anew."
        )


def _clear(out: Path) -> None:
    """Remove what an earlier run has written, its settings last: until then it is known as such.

    Raises:
        OutputError: something cannot be removed.
    """
    try:
        for path in [out / SUMMARY, out / DOCUMENTS, *sorted((out / PARTS).glob("part-*.parquet")), out / SETTINGS]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be cleared: {error.strerror}. Choose another folder.") from error


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
