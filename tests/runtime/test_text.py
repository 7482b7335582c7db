"""Text in and out: characters that are whole, and tokenizers in bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gptexport_runtime import ArtifactError, BackendUnavailableError, InputError
from gptexport_runtime.contract.names import CHARACTERS, MANIFEST_FILE
from gptexport_runtime.text import StoppingStream, Tokenizer, bundle_tokenizer, characters, load_tokenizer
from tests.support.builders import ALPHABET, SIZES, nanogpt_meta, tiny_huggingface, tiny_nanogpt
from tests.support.cli import Cli

V = SIZES["vocab_size"]
WORDS = "naïve 語 🙂 text"


def huggingface(path: Path) -> Path:
    """Byte-level BPE, as GPT-2's: a character may be several tokens."""
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


@pytest.fixture(params=["bytes", "tokenizer.json"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """Of bytes, by table and by their neighbours."""
    return load_tokenizer(str(huggingface(tmp_path / request.param)) if "json" in request.param else request.param)


def of_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The id of each byte, whatever it is; in byte-level BPE the alphabet comes first, in its own order."""
    if tokenizer.name == "bytes":
        return list(data)
    whole = {bytes([i]): tokenizer.encode(chr(i))[0] for i in range(128)}
    for text in ("é", "🙂", "語"):
        whole |= dict(zip((bytes([b]) for b in text.encode()), tokenizer.encode(text), strict=True))
    return [whole[bytes([byte])] for byte in data]


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"a" + "🙂".encode()[:3], ["a", "", "", ""]),  # half a character at the end
        ("語".encode()[:2] + b"xy", ["", "", "�x", "y"]),  # and in the middle
        ("語".encode()[:1] + "é".encode(), ["", "", "�é"]),
    ],
)
def test_half_a_character_is_shown_as_such(tokenizer: Tokenizer, data: bytes, pieces: list[str]) -> None:
    stream = tokenizer.stream()
    got = [stream.feed([i]) for i in of_bytes(tokenizer, data)]
    whole = "".join(got) + stream.end()
    assert whole == data.decode("utf-8", "replace") == tokenizer.decode(of_bytes(tokenizer, data))
    if tokenizer.name != "bytes":  # bytes may tell a little earlier that it is none
        assert got == pieces
    assert stream.feed(tokenizer.encode("z")) == "z", "after the end it begins anew"


def test_what_is_no_text_for_long_does_not_hold_back_the_rest(tokenizer: Tokenizer) -> None:
    """An untrained model says bytes that are no UTF-8 for ever; they come as they are said."""
    stream = tokenizer.stream()
    told = "".join(stream.feed([i]) for i in of_bytes(tokenizer, "é".encode()[1:] * 30))
    assert 27 <= len(told) <= 30 and set(told) == {"�"}


def test_ids_past_the_tokenizer_are_shown_not_raised(tokenizer: Tokenizer) -> None:
    h, i = tokenizer.encode("h") + tokenizer.encode("i")
    assert tokenizer.decode([h, tokenizer.size + 9, i]) == "h�i"
    assert tokenizer.show(tokenizer.size + 9) == "�"
    half = of_bytes(tokenizer, "é".encode()[:1])
    assert tokenizer.decode([*half, tokenizer.size, i]) == "��i"


@given(
    st.lists(st.text("ab語", min_size=1, max_size=4), max_size=5),
    st.lists(st.text("ab語", min_size=1, max_size=4), max_size=3),
)
def test_a_stream_ends_before_a_text_to_stop_at(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut; and what can no longer be part of one is told at once."""
    whole = "".join(pieces)
    found = [at for stop in stops if (at := whole.find(stop)) >= 0]
    stream = StoppingStream(load_tokenizer("bytes").stream(), stops)
    told = ""
    for piece in pieces:
        before, told = told, told + stream.feed(list(piece.encode()))
        assert stream.stopped or len(told) > len(before + piece) - 4, "shorter than the longest stop"
    assert stream.stopped == bool(found)
    assert told + stream.end() == whole[: min(found, default=len(whole))]


def test_gpt2_by_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that has tiktoken's interface; its vocabulary has to be fetched."""
    made = SimpleNamespace(
        n_vocab=256,
        encode_ordinary=lambda text: list(text.encode()),
        decode_single_token_bytes=lambda i: bytes([i]),
    )
    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding={"gpt2": made}.__getitem__))
    assert load_tokenizer("gpt2").decode(load_tokenizer("gpt2").encode(WORDS)) == WORDS

    def offline(_name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=offline))
    with pytest.raises(BackendUnavailableError, match=r"could not fetch .* no route.*TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")


def test_a_checkpoints_tokenizer_is_in_the_bundle(cli: Cli, tmp_path: Path) -> None:
    """Hugging Face's from its folder; nanoGPT's characters as JSON: a bundle holds no pickle."""
    folder = tiny_huggingface(tmp_path / "hf", vocab_size=300)
    huggingface(folder / "tokenizer.json")
    assert cli("onnx", folder, "-o", tmp_path / "a", "-q").code == 0
    found = bundle_tokenizer(tmp_path / "a")
    assert found is not None and found.decode(found.encode(WORDS)) == WORDS
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    assert cli("onnx", ckpt, "-o", tmp_path / "b", "-q").code == 0
    assert bundle_tokenizer(tmp_path / "b") is None
    ran = cli("onnx", ckpt, "-o", tmp_path / "c", "-q", "--tokenizer", nanogpt_meta(tmp_path / "meta.pkl"))
    assert ran.code == 0, ran.err
    found = bundle_tokenizer(tmp_path / "c")
    assert found is not None and found.encode("é!") == [V - 2, 1] and found.size == V
    assert "characters" in cli("inspect", tmp_path / "c").out

    table = tmp_path / "c" / CHARACTERS
    table.write_text(table.read_text().replace("é", "e"))
    inspected = cli("inspect", tmp_path / "c")
    assert inspected.code == 1 and f"problem: {table} has" in inspected.out
    with pytest.raises(ArtifactError, match=CHARACTERS):
        bundle_tokenizer(tmp_path / "c")


def nanogpt_repository(root: Path, table: list[str] = ALPHABET, **extra: object) -> Path:
    """`out/ckpt.pt` and `data/shakespeare_char/meta.pkl`, as nanoGPT leaves them."""
    (root / "out").mkdir(parents=True)
    (root / "data" / "shakespeare_char").mkdir(parents=True)
    nanogpt_meta(root / "data" / "shakespeare_char" / "meta.pkl", table)
    return tiny_nanogpt(root / "out" / "ckpt.pt", extra=extra)


def test_nanogpts_characters_are_found(cli: Cli, tmp_path: Path) -> None:
    ran = cli("onnx", nanogpt_repository(tmp_path), "-o", tmp_path / "gpt")
    found = bundle_tokenizer(tmp_path / "gpt")
    assert found is not None and found.encode("é!") == [V - 2, 1]
    assert "meta.pkl is included in the bundle" in ran.err
    assert bundle_tokenizer(tmp_path / "gpt" / MANIFEST_FILE) is not None
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in (tmp_path / "gpt").iterdir())


@pytest.mark.parametrize("dataset", ["../data/shakespeare_char", "/etc", "..", "", 7, None])
def test_a_dataset_that_is_no_plain_name_is_not_looked_for(tmp_path: Path, dataset: object) -> None:
    from gptexport.checkpoints import load_checkpoint

    path = nanogpt_repository(tmp_path, config={"dataset": dataset})
    assert load_checkpoint(str(path)).tokenizer is None


@pytest.mark.parametrize("flaw", ["another data set", "code", "damaged"])
def test_a_tokenizer_that_was_found_and_is_none_stays_behind(cli: Cli, tmp_path: Path, flaw: str) -> None:
    if flaw == "damaged":
        path = tiny_huggingface(tmp_path / "hf")
        (path / "tokenizer.json").write_text("{")
    else:
        path = nanogpt_repository(tmp_path, ALPHABET[:-1])
        if flaw == "code":
            (tmp_path / "data/shakespeare_char/meta.pkl").write_bytes(
                f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode()
            )
    ran = cli("onnx", path, "-o", tmp_path / "gpt")
    assert ran.code == 0 and "the bundle carries no tokenizer" in ran.err
    assert bundle_tokenizer(tmp_path / "gpt") is None and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "message"), [("bytes", "256 ids, the model's vocabulary 97"), ("none", "is not a")])
def test_a_tokenizer_of_another_model_is_refused(cli: Cli, tmp_path: Path, name: str, message: str) -> None:
    ran = cli("onnx", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "gpt", "--tokenizer", name)
    assert ran.code == 1 and message in ran.err and not (tmp_path / "gpt").exists()


def test_an_old_manifest_has_no_tokenizer_and_a_damaged_one_says_so(bundles: dict[str, Path], tmp_path: Path) -> None:
    data = json.loads((bundles["cpu"] / MANIFEST_FILE).read_text())
    del data["tokenizer"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(data))
    assert bundle_tokenizer(tmp_path) is None
    damages: tuple[object, ...] = (
        "gpt2",
        {"file": {}},
        {"name": "x", "file": {"file": "../x", "bytes": 1, "sha256": ""}},
        {"name": str(tmp_path / "tokenizer.json"), "file": None},
    )
    huggingface(tmp_path / "tokenizer.json")  # there is one to be opened
    for damaged in damages:
        (tmp_path / MANIFEST_FILE).write_text(json.dumps({**data, "tokenizer": damaged}))
        with pytest.raises(ArtifactError, match="tokenizer"):
            bundle_tokenizer(tmp_path)


def test_unknown_characters_are_named() -> None:
    with pytest.raises(InputError, match="'xy'"):
        characters(["a"], "the table").encode("ayx")
