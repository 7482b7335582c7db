"""Everything that reads files of others, each with a valid one to start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from gptexport_runtime import GPTExportError, Session, load
from gptexport_runtime.engine_file import read_engine_info
from scripts.fuzz import mutate
from scripts.fuzz.mutate import Mutation

BUG = "This is a bug in gptexport"


class Foreign(Exception):
    """What the command line called a bug, or printed raw."""


@dataclass(frozen=True)
class Reader:
    """`read` is given a folder in which one of `files`, each with its mutation, is not what it was."""

    name: str
    template: str  # the folder of `templates` that it starts from
    files: Sequence[tuple[str, Mutation]]
    read: Callable[[Path], None]
    weight: int = 1
    rehash: bool = False  # the manifest says what the file is now


def templates(root: Path) -> None:
    """Write the valid files, each kind in a folder of its own. Takes half a minute."""
    import numpy as np
    import torch

    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx
    from gptexport.tokenizers import tokenizer_to_bundle
    from tests.support.builders import nanogpt_meta, tiny_build_nanogpt, tiny_huggingface, tiny_nanogpt
    from tests.support.fake_engine import write_engine

    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 300}
    for name, legacy in (("nanogpt", False), ("legacy", True)):
        (root / name / "data" / "shakespeare_char").mkdir(parents=True)
        tiny_nanogpt(root / name / "ckpt.pt", legacy=legacy, **sizes)
    (root / "build").mkdir()
    tiny_build_nanogpt(root / "build" / "model_00001.pt", **sizes)
    for name, safetensors, sharded in (("hf", True, False), ("hf-sharded", True, True), ("hf-bin", False, False)):
        hf = {key: value for key, value in sizes.items() if key != "block_size"}
        hf["n_embd"] = 24 if sharded else 8  # shards are of 20 KB
        tiny_huggingface(root / name, safetensors=safetensors, sharded=sharded, n_positions=16, **hf)
    (root / "meta").mkdir()
    nanogpt_meta(root / "meta" / "meta.pkl")
    _tokenizer(root / "hf" / "tokenizer.json")
    (root / "tokens").mkdir()
    np.arange(200, dtype=np.uint16).tofile(root / "tokens" / "val.bin")
    np.save(root / "tokens" / "val.npy", np.arange(200, dtype=np.uint16))
    (root / "tokens" / "val.txt").write_text("to be or not to be, that is the question\n" * 20)
    (root / "engine").mkdir()
    write_engine(root / "engine")
    torch.manual_seed(0)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        words = tokenizer_to_bundle(str(root / "hf" / "tokenizer.json"))
        export_onnx(load_checkpoint(str(root / "nanogpt" / "ckpt.pt")), root / "bundle", tokenizer=words)
        export_onnx(load_checkpoint(str(root / "nanogpt" / "ckpt.pt")), root / "graph" / "gpt.onnx")
        _command("parity", root / "bundle", "--against", root / "nanogpt" / "ckpt.pt", "--save", root / "saved.json")
    (root / "saved").mkdir()
    (root / "saved.json").rename(root / "saved" / "saved.json")


def _tokenizer(path: Path) -> None:
    import tokenizers

    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={chr(97 + i): i for i in range(26)} | {"ab": 26}, merges=[("a", "b")])
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(path))


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
    _refused(lambda: load(folder, "cpu", threads=1, require_parity=True).close())
    with load(folder, "cpu", threads=1) as session:
        _calls(session)


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


def words_of_file(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from gptexport.tokenizers import load_tokenizer, tokenizer_to_bundle

        tokenizer_to_bundle(str(folder / name))
        words = load_tokenizer(str(folder / name))
        words.decode(words.encode("ab"))

    return read


def inspect(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        _command("inspect", folder / name)
        _command("inspect", folder / name, "--json")

    return read


def checkpoint(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        import torch

        from gptexport.checkpoints import load_checkpoint
        from gptexport.tokenizers import found_with

        _command("inspect", folder / name)
        loaded = load_checkpoint(str(folder / name))
        found_with(loaded)
        with torch.inference_mode():
            loaded.model(torch.zeros(1, 1, dtype=torch.int64))

    return read


def saved(folder: Path) -> None:
    _command("parity", folder / "saved.json")
    _command("parity", folder / "saved.json", "--json", "--gate", "noise_ratio=3")


def tokens(folder: Path) -> None:
    from gptexport.parity import read_tokens
    from gptexport_runtime.text import load_tokenizer

    for path in sorted(folder.iterdir()):
        _refused(partial(read_tokens, path, 300, load_tokenizer("bytes")))


def source(name: str) -> Callable[[Path], None]:
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
HF = [
    ("config.json", mutate.in_json),
    ("generation_config.json", mutate.in_json),
    ("tokenizer.json", mutate.in_json),
    ("model.safetensors", mutate.in_safetensors),
]
READERS = (
    Reader("manifest", "bundle", [("gptexport.json", mutate.in_json), ("gptexport.json", mutate.raw)], run_bundle, 12),
    Reader("manifest, inspected", "bundle", [("gptexport.json", mutate.in_json)], inspect("."), 12),
    Reader("bundle's graphs", "bundle", [*GRAPHS, ("weights.data", mutate.raw)], run_bundle, 4, rehash=True),
    Reader("bundle's graphs, inspected", "bundle", GRAPHS, inspect("."), 4, rehash=True),
    Reader("bundle, built from", "bundle", [("gptexport.json", mutate.in_json), GRAPHS[0]], source("."), 6),
    Reader("bundle's tokenizer", "bundle", [("tokenizer.json", mutate.in_json)], words_of_bundle, 12, rehash=True),
    Reader("graph", "graph", [("gpt.onnx", mutate.in_onnx)], run_graph, 4),
    Reader("graph, inspected", "graph", [("gpt.onnx", mutate.in_onnx)], inspect("gpt.onnx"), 8),
    Reader("graph, built from", "graph", [("gpt.onnx", mutate.in_onnx)], source("gpt.onnx"), 8),
    Reader("engine", "engine", [("gpt.engine.json", mutate.in_json), ("gpt.engine", mutate.raw)], run_engine, 12),
    Reader("engine, inspected", "engine", [("gpt.engine.json", mutate.in_json)], inspect("gpt.engine"), 12),
    Reader("nanoGPT", "nanogpt", [("ckpt.pt", mutate.in_zip)], checkpoint("ckpt.pt"), 6),
    Reader("nanoGPT, legacy", "legacy", [("ckpt.pt", mutate.raw)], checkpoint("ckpt.pt"), 3),
    Reader("build-nanogpt", "build", [("model_00001.pt", mutate.in_zip)], checkpoint("model_00001.pt"), 6),
    Reader("Hugging Face", "hf", HF, checkpoint("."), 8),
    Reader(
        "Hugging Face, in shards",
        "hf-sharded",
        [("model.safetensors.index.json", mutate.in_json), ("config.json", mutate.in_json)],
        checkpoint("."),
        4,
    ),
    Reader("Hugging Face, pickled", "hf-bin", [("pytorch_model.bin", mutate.in_zip)], checkpoint("."), 4),
    Reader("meta.pkl", "meta", [("meta.pkl", mutate.in_pickle)], words_of_file("meta.pkl"), 12),
    Reader("tokenizer.json", "hf", [("tokenizer.json", mutate.in_json)], words_of_file("tokenizer.json"), 12),
    Reader("saved measurements", "saved", [("saved.json", mutate.in_json)], saved, 3),
    Reader(
        "token files",
        "tokens",
        [("val.npy", mutate.in_npy), ("val.bin", mutate.raw), ("val.txt", mutate.in_text)],
        tokens,
        8,
    ),
)


def reader_of(random: Random, only: str | None = None) -> Reader:
    """One, the light ones more often."""
    found = [reader for reader in READERS if only is None or reader.name == only]
    return random.choices(found, [reader.weight for reader in found])[0]
