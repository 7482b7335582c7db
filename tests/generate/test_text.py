"""Text in and out: characters that are whole, tokenizers that travel, and the command."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import SIZES, tiny_huggingface, tiny_nanogpt
from conftest import Ran
from gptexport_runtime import ArtifactError, InputError
from gptexport_runtime.contract import CHARACTERS, MANIFEST_FILE
from gptexport_runtime.text import bundle_tokenizer, characters, load_tokenizer

V = SIZES["vocab_size"]
ALPHABET = [chr(i) for i in range(32, 32 + V - 2)] + ["é", "語"]
WORDS = "naïve 語 🙂 text"


def meta(path: Path) -> Path:
    table = dict(enumerate(ALPHABET))
    path.write_bytes(pickle.dumps({"itos": table, "stoi": {c: i for i, c in table.items()}, "vocab_size": V}))
    return path


def huggingface(path: Path) -> Path:
    """Byte-level BPE, as GPT-2's: a character may be several tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["plain text"], trainer)
    made.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["bytes", "tokenizer.json", "characters"])
def test_text_comes_whole_however_it_is_cut(tmp_path: Path, kind: str) -> None:
    """Never half a character, and all of it in the end."""
    if kind == "characters":
        tokenizer, text = characters(ALPHABET, "here"), "a é 語!"
    else:
        tokenizer = load_tokenizer(str(huggingface(tmp_path / kind)) if kind.endswith("json") else kind)
        text = WORDS
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.feed([i]) for i in ids]
    assert "".join(pieces) + stream.end() == text == tokenizer.decode(ids)
    assert all("�" not in piece for piece in pieces)
    assert kind == "characters" or "" in pieces, "a character of several tokens waited"


@pytest.mark.parametrize("kind", ["bytes", "tokenizer.json"])
def test_half_a_character_at_the_end_is_shown_as_such(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(str(huggingface(tmp_path / kind)) if kind.endswith("json") else kind)
    cut = list(load_tokenizer("bytes").encode("a🙂"))[:-1]
    if kind != "bytes":
        cut = tokenizer.encode("a") + [i for byte in cut[1:] for i in [_byte_id(tokenizer, byte)]]
    assert tokenizer.decode(cut).rstrip("�") == "a" and tokenizer.decode(cut) != "a"


def _byte_id(tokenizer: Any, byte: int) -> int:
    """The token of one byte that is no character of its own: the ids that show as U+FFFD, asked in pairs."""
    for i in range(tokenizer.size):
        if tokenizer.show(i) == "�":
            return i
    raise AssertionError(byte)


def test_ids_past_the_tokenizer_are_shown_not_raised() -> None:
    assert load_tokenizer("bytes").decode([104, 300, 105]) == "h�i"


def test_a_checkpoints_tokenizer_travels(gptexport: Callable[..., Ran], tmp_path: Path) -> None:
    """Hugging Face's from its folder; nanoGPT's characters as JSON: a bundle holds no pickle."""
    folder = tiny_huggingface(tmp_path / "hf", vocab_size=300)
    huggingface(folder / "tokenizer.json")
    assert gptexport("onnx", folder, "-o", tmp_path / "a", "-q").code == 0
    found = bundle_tokenizer(tmp_path / "a")
    assert found is not None and found.decode(found.encode(WORDS)) == WORDS
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    assert gptexport("onnx", ckpt, "-o", tmp_path / "b", "-q").code == 0
    assert bundle_tokenizer(tmp_path / "b") is None
    ran = gptexport("onnx", ckpt, "-o", tmp_path / "c", "-q", "--tokenizer", meta(tmp_path / "meta.pkl"))
    assert ran.code == 0, ran.err
    found = bundle_tokenizer(tmp_path / "c")
    assert found is not None and found.encode("é!") == [V - 2, 1] and found.size == V
    assert "characters" in gptexport("inspect", tmp_path / "c").out

    table = tmp_path / "c" / CHARACTERS
    table.write_text(table.read_text().replace("é", "e"))
    with pytest.raises(ArtifactError, match=CHARACTERS):
        bundle_tokenizer(tmp_path / "c")


@pytest.mark.parametrize(("name", "message"), [("bytes", "256 ids, the model's vocabulary 97"), ("none", "is not a")])
def test_a_tokenizer_of_another_model_is_refused(
    gptexport: Callable[..., Ran], tmp_path: Path, name: str, message: str
) -> None:
    ran = gptexport("onnx", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "gpt", "--tokenizer", name)
    assert ran.code == 1 and message in ran.err and not (tmp_path / "gpt").exists()


def test_an_old_manifest_has_no_tokenizer_and_a_damaged_one_says_so(bundles: dict[str, Path], tmp_path: Path) -> None:
    data = json.loads((bundles["cpu"] / MANIFEST_FILE).read_text())
    del data["tokenizer"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(data))
    assert bundle_tokenizer(tmp_path) is None
    for damaged in ("gpt2", {"file": {}}, {"name": "x", "file": {"file": "../x", "bytes": 1, "sha256": ""}}):
        (tmp_path / MANIFEST_FILE).write_text(json.dumps({**data, "tokenizer": damaged}))
        with pytest.raises(ArtifactError, match="tokenizer"):
            bundle_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx
    from gptexport.tokenizers import travelling

    folder = tmp_path_factory.mktemp("talking")
    words = travelling(str(meta(folder / "meta.pkl")))
    export_onnx(load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt"))), folder / "gpt", tokenizer=words)
    return folder / "gpt"


def test_the_command_prints_what_the_session_generates(gptexport: Callable[..., Ran], talking: Path) -> None:
    from gptexport_runtime import load

    with load(talking) as session:
        expected = session.generate([[33, 34, 35]], max_new_tokens=9, top_k=5, seed=4)[0]
    text = "".join(ALPHABET[i] for i in expected)
    options = ("--max-new-tokens", 9, "--top-k", 5, "-q")
    ran = gptexport("generate", talking, "--prompt", "ABC", "--seed", 4, *options)
    assert (ran.code, ran.out) == (0, text + "\n")
    data = json.loads(gptexport("generate", talking, "--prompt-ids", "33,34,35", "--seed", 4, *options, "--json").out)
    assert data["samples"] == [{"seed": 4, "ids": expected.tolist(), "text": text}]
    assert data["prompt_ids"] == [33, 34, 35]
    many = json.loads(
        gptexport("generate", talking, "--prompt", "ABC", "--seed", 2, "--samples", 4, *options, "--json").out
    )
    assert [row["seed"] for row in many["samples"]] == [2, 3, 4, 5] and many["samples"][2]["text"] == text
    assert len({row["text"] for row in many["samples"]}) > 1
    assert (
        f"--- seed 4 ---\n{text}\n"
        in gptexport("generate", talking, "--prompt", "ABC", "--seed", 3, "--samples", 2, *options).out
    )


def test_the_command_without_a_tokenizer(gptexport: Callable[..., Ran], bundles: dict[str, Path]) -> None:
    ran = gptexport("generate", bundles["cpu"], "--prompt", "ABC")
    assert ran.code == 1 and "carries no tokenizer" in ran.err and "--prompt-ids" in ran.err
    ran = gptexport("generate", bundles["cpu"], "--prompt-ids", "1,2", "--temperature", 0, "--max-new-tokens", 3, "-q")
    assert ran.code == 0 and len(ran.out.split()) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Pass either --prompt or --prompt-ids"),
        (("--prompt", "a", "--prompt-ids", "1"), 2, "Pass either"),
        (("--prompt-ids", "1,x"), 2, "'x' is not a token id"),
        (("--prompt", ""), 2, "the prompt is empty"),
        (("--prompt", "\x00"), 1, "characters that"),
        (("--prompt", "a", "--top-p", "2"), 1, "top_p is 2.0"),
        (("--prompt", "a", "--max-new-tokens", "99"), 1, "block_size is 17"),
        (("--prompt-ids", "1000"), 1, "1000"),
    ],
)
def test_what_the_command_refuses(
    gptexport: Callable[..., Ran], talking: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = gptexport("generate", talking, *arguments)
    assert ran.code == code and message in ran.err, ran.err


def test_unknown_characters_are_named() -> None:
    with pytest.raises(InputError, match="'xy'"):
        characters(["a"], "the table").encode("ayx")
