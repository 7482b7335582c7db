"""Everything that reads files of others, each with a valid one to start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from gptexport_runtime import GPTExportError, Session, load
from gptexport_runtime.engine_file import read_engine_info
from scripts.fuzz import mutate
from scripts.fuzz.mutate import Mutation

Read = Callable[[Path], None]
BUG = "This is a bug in gptexport"


class Foreign(Exception):
    """What the command line called a bug, or printed raw."""


@dataclass(frozen=True)
class Reader:
    """One of `reads` is given a folder in which one of `files`, each with its mutation, is not what it was.

    `covers` is what it reads, by the names in gptexport's registries of formats, models and tokenizers' files.
    """

    name: str
    template: str  # the folder of `templates` that it starts from
    files: Sequence[tuple[str, Mutation]]
    reads: Sequence[Read]
    weight: int = 1
    rehash: bool = False  # the manifest says what the file is now
    covers: tuple[str, ...] = ()


def rehash(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    manifest, data = folder / "gptexport.json", (folder / name).read_bytes()
    found = json.loads(manifest.read_text())
    for entry in (*found["graphs"].values(), found["weights"], found["tokenizer"]["file"]):
        if entry["file"] == name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(found))


def _command(*arguments: object) -> None:
    """Run a command in this process; what it calls a bug, or prints raw, is one."""
    from gptexport.cli.app import run

    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        run([str(argument) for argument in arguments])
    text = out.getvalue()
    if BUG in text:
        raise Foreign(text[:2000])
    raw = {c for c in text if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000}
    if raw:
        raise Foreign(f"printed raw: {sorted(raw)!r}")


def _calls(session: Session) -> None:
    for call in (
        lambda: session.logits([[1, 2, 3], [4]]),
        lambda: session.last_logits([[1, 2, 3]]),
        lambda: session.score([[1, 2, 3]]),
        lambda: session.generate([[1, 2, 3]], max_new_tokens=2),
    ):
        try:
            call()
        except GPTExportError:
            continue


def run_bundle(folder: Path) -> None:
    with load(folder, "cpu", threads=1) as session:
        _calls(session)


def proved_bundle(folder: Path) -> None:
    load(folder, "cpu", threads=1, require_parity=True).close()


def run_graph(folder: Path) -> None:
    with load(folder / "gpt.onnx", "cpu", threads=1) as session:
        _calls(session)


def run_engine(folder: Path) -> None:
    _refused(lambda: load(folder / "gpt.engine"))  # always, but on a machine with a GPU
    read_engine_info(folder / "gpt.engine")


def words_of_bundle(folder: Path) -> None:
    from gptexport_runtime.text import bundle_tokenizer

    words = bundle_tokenizer(folder)
    if words is not None:
        ids = words.encode("ab é\n")
        words.decode([*ids, 0, 5, 10**6])
        words.show(3)


def words_of_file(name: str) -> Read:
    def read(folder: Path) -> None:
        from gptexport.tokenizers import load_tokenizer, tokenizer_to_bundle

        tokenizer_to_bundle(str(folder / name))
        words = load_tokenizer(str(folder / name))
        words.decode(words.encode("ab"))

    return read


def inspect(name: str, *options: str) -> Read:
    return lambda folder: _command("inspect", folder / name, *options)


def checkpoint(name: str, **choices: Any) -> Read:
    """As `onnx` begins; what is refused is looked at, too, as `inspect` does."""

    def read(folder: Path) -> None:
        import torch

        from gptexport.checkpoints import load_checkpoint
        from gptexport.tokenizers import found_with

        try:
            loaded = load_checkpoint(str(folder / name), **choices)
        except GPTExportError:
            describe(folder)
            raise
        found_with(loaded)
        with torch.inference_mode():
            loaded.model(torch.zeros(1, 1, dtype=torch.int64))

    describe = inspect(name)
    return read


def saved(*options: str) -> Read:
    return lambda folder: _command("parity", folder / "saved.json", *options)


def tokens(folder: Path) -> None:
    from gptexport.parity import read_tokens
    from gptexport_runtime.text import load_tokenizer

    for path in sorted(folder.iterdir()):
        _refused(partial(read_tokens, path, 300, load_tokenizer("bytes")))


def source(name: str) -> Read:
    def read(folder: Path) -> None:
        from gptexport.engine import open_source

        open_source(folder / name)

    return read


def _refused(call: Callable[[], object]) -> None:
    """It may be refused, and the rest of a reader goes on."""
    try:
        call()
    except GPTExportError:
        return


GRAPHS = [(f"{head}.onnx", mutate.in_onnx) for head in ("logits", "last", "score", "decode")]
MANIFEST = [("gptexport.json", mutate.in_json), ("gptexport.json", mutate.raw)]
GRAPH = [("gpt.onnx", mutate.in_onnx)]
ENGINE = [("gpt.engine.json", mutate.in_json), ("gpt.engine", mutate.raw)]
CONFIG = ("config.json", mutate.in_json)
HF = [CONFIG, ("model.safetensors", mutate.in_safetensors)]
TEXT = [
    (f"{name}.json", mutate.in_json)
    for name in ("generation_config", "tokenizer", "tokenizer_config", "special_tokens_map")
]
SHARDS = [("model.safetensors.index.json", mutate.in_json), CONFIG]
NANOCHAT = [("meta_003750.json", mutate.in_json), ("model_003750.pt", mutate.in_zip)]
LITGPT = [("model_config.yaml", mutate.in_yaml), ("lit_model.pth", mutate.in_zip)]
TOKENS = [("val.npy", mutate.in_npy), ("val.bin", mutate.raw), ("val.txt", mutate.in_text)]
FOREIGN = [(name, mutate.raw) for name in ("a.gguf", "b.npz", "c", "d", "e", "f")]
GATE = ("--gate", "noise_ratio=3")
LLAMAS = ("llama", "mistral", "qwen2", "qwen3")


def _inspected(name: str) -> tuple[Read, Read]:
    return inspect(name), inspect(name, "--json")


def _format(
    name: str,
    template: str,
    files: Sequence[tuple[str, Mutation]],
    path: str,
    covers: tuple[str, ...] = (),
    **choices: Any,
) -> Reader:
    """What checkpoints come in: loaded, or described."""
    load = checkpoint(path, **choices)
    return Reader(name, template, files, (load, load, *_inspected(path)), 4, covers=covers)


def _zip(name: str) -> list[tuple[str, Mutation]]:
    return [(name, mutate.in_zip)]


FORMATS = (
    _format("nanoGPT", "nanogpt", _zip("ckpt.pt"), "ckpt.pt", ("nanogpt",)),
    _format("nanoGPT, legacy", "legacy", [("ckpt.pt", mutate.raw)], "ckpt.pt"),
    _format("build-nanogpt", "build", _zip("model_00001.pt"), "model_00001.pt", ("build-nanogpt",)),
    _format("Hugging Face", "hf", [*HF, *TEXT], ".", ("huggingface", "gpt2")),
    _format("Hugging Face, in shards", "hf-sharded", SHARDS, "."),
    _format("Hugging Face, pickled", "hf-bin", _zip("pytorch_model.bin"), "."),
    *(_format(f"Hugging Face, {name}", f"hf-{name}", HF, ".", (name,)) for name in LLAMAS),
    _format("Hugging Face, GPT-NeoX", "hf-neox", HF, ".", ("gpt_neox",)),
    _format("llm.c", "llmc", [("model.bin", mutate.in_header)], "model.bin", ("llm.c",)),
    _format("LitGPT", "litgpt", LITGPT, ".", ("litgpt",)),
    _format("llama2.c", "llama2c", _zip("ckpt.pt"), "ckpt.pt", ("llama2.c",)),
    _format("nanochat", "nanochat", NANOCHAT, "model_003750.pt", ("nanochat",)),
    _format("LLMs-from-scratch", "scratch", _zip("model.pth"), "model.pth", ("llms-from-scratch",), n_head=2),
    _format("LLMs-from-scratch, Llama", "scratch-llama", _zip("model.pth"), "model.pth", n_head=2),
    _format("minimind", "minimind", _zip("sft.pth"), "sft.pth", ("minimind",), block_size=16),
    _format("state_dict", "state-dict", _zip("weights.pt"), "weights.pt", ("state-dict",), n_head=2),
)
TOKENIZERS = (
    ("meta.pkl", "meta", [("meta.pkl", mutate.in_pickle)]),
    ("tokenizer.json", "hf", TEXT[1:]),
    ("vocab.json", "vocab", [("merges.txt", mutate.in_text), ("vocab.json", mutate.in_json), CONFIG]),
    ("vocab.txt", "word-piece", [("vocab.txt", mutate.in_text)]),
    ("tokenizer.pkl", "tiktoken", [("tokenizer.pkl", mutate.in_pickle)]),
    ("tokenizer.model", "sentencepiece", [("tokenizer.model", mutate.raw)]),  # refused where its package is not there
)
READERS = (
    Reader("manifest", "bundle", MANIFEST, (run_bundle, proved_bundle), 6),
    Reader("manifest, inspected", "bundle", MANIFEST, _inspected("."), 12),
    Reader("bundle's graphs", "bundle", [*GRAPHS, ("weights.data", mutate.raw)], (run_bundle,), 3, rehash=True),
    Reader("bundle's graphs, inspected", "bundle", GRAPHS, _inspected("."), 4, rehash=True),
    Reader("bundle, built from", "bundle", [MANIFEST[0], GRAPHS[0]], (source("."),), 10),
    Reader("bundle's tokenizer", "bundle", [("tokenizer.json", mutate.in_json)], (words_of_bundle,), 10, rehash=True),
    Reader("graph", "graph", GRAPH, (run_graph,), 6),
    Reader("graph, inspected", "graph", GRAPH, _inspected("gpt.onnx"), 10),
    Reader("graph, built from", "graph", GRAPH, (source("gpt.onnx"),), 10),
    Reader("engine", "engine", ENGINE, (run_engine,), 10),
    Reader("engine, inspected", "engine", ENGINE, _inspected("gpt.engine"), 10),
    *FORMATS,
    Reader("own module", "module", [("mine.py", mutate.in_text)], _inspected("mine.py:make"), 4),
    Reader("foreign files", "foreign", FOREIGN, _inspected("."), 6),
    *(Reader(name, folder, files, (words_of_file(name),), 12, covers=(name,)) for name, folder, files in TOKENIZERS),
    Reader("saved measurements", "saved", [("saved.json", mutate.in_json)], (saved(), saved("--json", *GATE)), 3),
    Reader("token files", "tokens", TOKENS, (tokens,), 8),
)


def reader_of(random: Random, only: str | None = None) -> Reader:
    """One, the light ones more often."""
    found, weights = _weighted(only)
    return random.choices(found, cum_weights=weights)[0]


@cache
def _weighted(only: str | None) -> tuple[list[Reader], list[int]]:
    found = [reader for reader in READERS if only is None or reader.name == only]
    return found, list(accumulate(reader.weight for reader in found))
