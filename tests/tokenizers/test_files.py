"""Tokenizers in every form that training leaves them in: transformers' ids, or a sentence that says why not."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from gptexport.errors import TokenizerError
from gptexport.tokenizers import load_tokenizer, tokenizer_to_bundle
from gptexport_runtime import BackendUnavailableError, GPTExportError, InputError
from gptexport_runtime.text import tokenizer_of_json
from tests.support.texts import SCRIPTS, byte_level_bpe, llama_bpe, suffix_bpe, word_piece, words

transformers = pytest.importorskip("transformers")

TEXTS = [*SCRIPTS.values(), "the text", "<|endoftext|>the", "[SEP] the [MASK]", ""]


def slow_gpt2(folder: Path, **config: object) -> Path:
    """vocab.json and merges.txt, as GPT-2s before 2021 have them."""
    folder.mkdir(exist_ok=True)
    byte_level_bpe().model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def slow_bert(folder: Path, **config: object) -> Path:
    """vocab.txt, as GPT2-Chinese has it."""
    folder.mkdir(exist_ok=True)
    made = word_piece()
    vocab = dict(sorted(made.get_vocab().items(), key=lambda pair: pair[1]))
    (folder / "vocab.txt").write_text("\n".join([*vocab, "[PAD]", "[MASK]"]) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2", "tokenizer_class": "BertTokenizer"}')
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


GPT2S: list[dict[str, Any]] = [
    {},
    {"tokenizer_class": "GPT2Tokenizer"},
    {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True},
    {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "!"},
]


@pytest.mark.parametrize("config", GPT2S, ids=str)
def test_vocab_json_gives_transformers_ids(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = slow_gpt2(tmp_path / "gpt2", **config)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(str(folder / "vocab.json"))
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        if "<|" not in text:  # transformers gives <|endoftext|> an id of its own if the vocabulary has none
            assert ours.encode(text) == ids, text
            assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_special_tokens_of_a_vocabulary_stay_whole(tmp_path: Path) -> None:
    folder = slow_gpt2(tmp_path / "gpt2")
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocab, "<|endoftext|>": len(vocab)}))
    (folder / "added_tokens.json").write_text(json.dumps({"<more>": len(vocab) + 1}))
    ours = load_tokenizer(str(folder / "vocab.json"))
    assert ours.encode("<|endoftext|><more>") == [len(vocab), len(vocab) + 1] and ours.size == len(vocab) + 2
    (folder / "added_tokens.json").write_text(json.dumps({"<more>": len(vocab) + 7}))
    with pytest.raises(TokenizerError, match=f"gives '<more>' the id {len(vocab) + 7}; the next free one is"):
        load_tokenizer(str(folder / "vocab.json"))


BERTS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]


@pytest.mark.parametrize("config", BERTS, ids=str)
def test_vocab_txt_gives_transformers_ids(tmp_path: Path, config: dict[str, Any]) -> None:
    """But for the [SEP] after the text, from which no model is to go on."""
    folder = slow_bert(tmp_path / "bert", **config)
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    ours = load_tokenizer(str(folder / "vocab.txt"))
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == (ids[:-1] if text else ids[:1]), text


def test_truncation_padding_and_dropout_are_of_training(tmp_path: Path) -> None:
    made = byte_level_bpe()
    plain = made.encode("the plain text").ids
    made.enable_truncation(2)
    made.enable_padding(length=40)
    made.model.dropout = 0.9
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    assert load_tokenizer(str(path)).encode("the plain text") == plain
    assert tokenizer_of_json(path.read_bytes(), "it").encode("the plain text") == plain, "whoever wrote the bundle"
    words = tokenizer_to_bundle(str(path))
    saved = json.loads(words.data)
    assert saved["truncation"] is saved["padding"] is saved["model"]["dropout"] is None
    assert words.changes == (
        "truncation to 2 tokens is switched off",
        "padding is switched off",
        "dropout of merges (0.9) is switched off",
    )


def test_padding_to_more_than_all_memory_is_never_tried(tmp_path: Path) -> None:
    """The library would abort the process."""
    saved = json.loads(words().to_str())
    saved["padding"] = {
        "strategy": {"Fixed": 2**31},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    assert tokenizer_of_json(json.dumps(saved).encode(), "it").encode("the text") == [3, 2]


def test_a_prefix_is_put_where_transformers_puts_one(tmp_path: Path) -> None:
    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_to_bundle(str(tmp_path / "tokenizer.json")).changes == ()
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true, "tokenizer_class": "GPT2Tokenizer"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).encode("the") == theirs("the")["input_ids"]
    assert tokenizer_to_bundle(str(tmp_path / "tokenizer.json")).changes == (
        "add_prefix_space is True, as in tokenizer_config.json",
    )


def test_the_token_that_begins_a_text_is_put_and_none_after_it() -> None:
    made = llama_bpe()
    ours = tokenizer_of_json(made.to_str().encode(), "it")
    assert ours.encode("the text") == made.encode("the text").ids and ours.encode("the text")[0] == 1
    bert = word_piece()
    assert tokenizer_of_json(bert.to_str().encode(), "it").encode("the [SEP]") == bert.encode("the [SEP]").ids[:-1]
    assert tokenizer_of_json(bert.to_str().encode(), "it").encode("") == [1]


def test_a_text_that_has_no_tokens_is_our_error() -> None:
    without = json.loads(words().to_str())
    del without["model"]["vocab"]["<unk>"]
    for text in ("other", "\ud800"):
        with pytest.raises(InputError, match=r"w\.json cannot encode the text"):
            tokenizer_of_json(json.dumps(without).encode(), "w.json").encode(text)


def sentencepiece_like(path: Path) -> None:
    path.write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")


def write(name: str, data: bytes | str) -> Any:
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def gpt1(folder: Path) -> None:
    suffix_bpe().model.save(str(folder))


NOT_READ = [
    ("vocab.json", write("vocab.json", '{"a": 0}'), r"half of a tokenizer: merges\.txt, its merges, is not beside it"),
    ("vocab.json", gpt1, r"not GPT-2's byte-level BPE: .* of 256 bytes have no token\. Save it as a tokenizer\.json"),
    (
        "vocab.json",
        lambda f: slow_gpt2(f, tokenizer_class="Qwen2Tokenizer"),
        r"is of a Qwen2Tokenizer, which reads text",
    ),
    ("vocab.txt", lambda f: slow_bert(f, tokenizer_class="CpmTokenizer"), r"is of a CpmTokenizer"),
    ("vocab.txt", write("vocab.txt", "a\nb\n"), r"not BERT's WordPiece: it has no \[UNK\], \[CLS\], \[SEP\]"),
    ("vocab.txt", write("vocab.txt", b"\xff\xfe"), r"vocab\.txt is not a vocabulary"),
    ("tokenizer.model", write("tokenizer.model", "IQ== 0\nIg== 1\n"), r"a tiktoken vocabulary, which does not say how"),
    ("qwen.tiktoken", write("qwen.tiktoken", "IQ== 0\nIg== 1\n"), r"a tiktoken vocabulary"),
    ("tokenizer.pkl", write("tokenizer.pkl", b"\x80\x04."), r"is not nanoGPT's meta\.pkl"),
    ("tokenizer.json", write("tokenizer.json", "[" * 100_000), r"tokenizer\.json is not JSON"),
    ("tokenizer.json", write("tokenizer.json", "[]"), r"a JSON list, expected an object"),
    ("tokenizer.json", write("tokenizer.json", '{"model": {}}'), r"not a Hugging Face tokenizer\.json \(no 'vocab'\)"),
    ("tokenizer.json", write("tokenizer.json", '{"model": {"vocab": {"a": 1e400}}}'), r"an id that is none"),
    ("notes.md", write("notes.md", "x"), r"is not a tokenizer: expected bytes, gpt2, a tokenizer\.json, vocab\.json"),
    (".", lambda folder: None, r"is a folder; name the tokenizer's file in it"),
]


@pytest.mark.parametrize(("name", "make", "message"), NOT_READ, ids=range(len(NOT_READ)))
def test_what_is_not_read_is_named(tmp_path: Path, name: str, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(GPTExportError, match=message):
        tokenizer_to_bundle(str(tmp_path / name))


def test_sentencepiece_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentencepiece_like(tmp_path / "tokenizer.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(BackendUnavailableError, match=r"needs the sentencepiece package.*pip install sentencepiece"):
        tokenizer_to_bundle(str(tmp_path / "tokenizer.model"))


class Processor:
    """sentencepiece's interface, over a model of bytes alone."""

    def __init__(self, model_proto: bytes) -> None:
        assert model_proto.startswith(b"\n")

    def get_piece_size(self) -> int:
        return 256

    def id_to_piece(self, i: int) -> str:
        return f"<0x{i:02X}>"

    def encode(self, text: str, out_type: type) -> list[int]:
        assert out_type is int
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_sentencepiece_by_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of its interface: the package is not among those that the tests need."""
    monkeypatch.setitem(sys.modules, "sentencepiece", type(sys)("sentencepiece"))
    monkeypatch.setattr(sys.modules["sentencepiece"], "SentencePieceProcessor", Processor, raising=False)
    sentencepiece_like(tmp_path / "spiece.model")
    words = tokenizer_to_bundle(str(tmp_path / "spiece.model"))
    assert (words.name, words.file, words.size) == ("tokenizer.model", "tokenizer.model", 256)
    ours = load_tokenizer(str(tmp_path / "spiece.model"))
    for text in SCRIPTS.values():
        assert ours.decode(ours.encode(text)) == text
    assert (ours.show(65), ours.show(256)) == ("<0x41>", "�")
    with pytest.raises(InputError, match="cannot encode the text"):
        ours.encode("\ud800")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02Nr\x00\x00\x00\x10.",  # a memo of 2^28 places
        b"\x80\x02" + b"}" + b"".join(b"]q\x01h\x01h\x01\x86q\x01" for _ in range(1200)) + b".",
        pickle.dumps({"itos": {0: ["a"]}, "stoi": {}}),
        pickle.dumps({"itos": {0: "\ud800"}, "stoi": {"\ud800": 0}}),
        pickle.dumps({"itos": {1: "a"}, "stoi": {"a": 1}}),
        pickle.dumps([1, 2]),
    ],
    ids=range(6),
)
def test_a_pickle_that_is_no_table_costs_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"is not nanoGPT's meta\.pkl"):
        tokenizer_to_bundle(str(tmp_path / "meta.pkl"))


def test_doubling_lists_are_not_written_out(tmp_path: Path) -> None:
    value: object = "a"
    for _ in range(60):
        value = [value, value]
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: value}, "stoi": {"a": 0}}))
    with pytest.raises(TokenizerError, match="itos holds a list; expected characters"):
        tokenizer_to_bundle(str(tmp_path / "meta.pkl"))
