"""Streamed text is decoded text, and decoded text is what the tokenizers package says, whatever the kind."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptexport_runtime.text import Tokenizer, load_tokenizer, tokenizer_of_json
from gptexport_runtime.text.streams import LIMIT, Window
from tests.support.texts import KINDS, SCRIPTS


@cache
def theirs(kind: str) -> Any:
    return KINDS[kind]()


@cache
def ours(kind: str) -> Tokenizer:
    return tokenizer_of_json(theirs(kind).to_str().encode(), f"{kind}.json")


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each id as it comes, and what comes at the end."""
    stream = tokenizer.stream()
    return [*(stream.feed([i]) for i in ids), stream.end()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_streams_as_it_decodes(kind: str, script: str) -> None:
    text = f"the text, {SCRIPTS[script]} the text"
    ids = theirs(kind).encode(text).ids
    right = theirs(kind).decode(ids, skip_special_tokens=False)
    pieces = streamed(ours(kind), ids)
    assert "".join(pieces) == right == ours(kind).decode(ids)
    if "�" not in right:
        assert not any("�" in piece for piece in pieces), "never half a character"


@pytest.mark.parametrize("kind", ["byte_level_bpe", "byte_level_in_sequence"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_byte_level_bpe_loses_nothing(kind: str, script: str) -> None:
    assert ours(kind).decode(ours(kind).encode(SCRIPTS[script])) == SCRIPTS[script]


@pytest.mark.parametrize("script", SCRIPTS)
def test_byte_fallback_loses_nothing(script: str) -> None:
    """But for the BOS, which is text to a decoder that shows special tokens."""
    begin, *ids = ours("llama_bpe").encode(SCRIPTS[script])
    assert begin == 1 and ours("llama_bpe").decode(ids) == SCRIPTS[script]


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_any_ids_stream_as_they_decode(data: st.DataObject) -> None:
    """An untrained model says anything: halves of characters, bytes that are none, one special token after another."""
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    size = ours(kind).size
    some = st.sampled_from(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4)))
    ids = data.draw(st.lists(st.one_of(some, st.integers(0, size - 1)), max_size=5 * LIMIT))
    ids = [i for i in ids if theirs(kind).id_to_token(i) is not None]
    right = theirs(kind).decode(ids, skip_special_tokens=False)
    assert "".join(streamed(ours(kind), ids)) == right


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_stream_as_they_decode(data: st.DataObject) -> None:
    """Runs of byte tokens, whole characters and not, with a word between some of them."""
    kind = data.draw(st.sampled_from(["llama_bpe", "unigram"]))
    byte = {byte: theirs(kind).token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    text = st.text("é語🙂𐍃a", max_size=6).map(lambda text: [byte[b] for b in text.encode()])
    loose = st.lists(st.sampled_from([0xE8, 0x80, 0xFF, 0xF0, 0x61]), max_size=3).map(
        lambda run: [byte[b] for b in run]
    )
    word = st.just([theirs(kind).token_to_id("t")])
    ids = list(chain(*data.draw(st.lists(st.one_of(text, loose, word), max_size=12))))
    assert "".join(streamed(ours(kind), ids)) == theirs(kind).decode(ids, skip_special_tokens=False)


def test_a_character_of_bytes_comes_when_the_run_ends() -> None:
    tokenizer = ours("llama_bpe")
    ids = [theirs("llama_bpe").token_to_id(f"<0x{byte:02X}>") for byte in "語".encode()]
    word = theirs("llama_bpe").token_to_id("t")
    assert streamed(tokenizer, [word, *ids, word]) == ["t", "", "", "", "語t", ""]
    assert streamed(tokenizer, [*ids[:2], word]) == ["", "", "��t", ""]
    assert streamed(tokenizer, [*ids, ids[0], ids[0]]) == ["", "", "", "", "�����", ""], (
        "one that is none spoils the run"
    )


def test_a_window_does_not_grow_with_the_text() -> None:
    lengths = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return " ".join(map(str, ids))

    window = Window(decode, lambda i: True, lambda i: None)
    ids = list(range(3000))
    assert "".join(window.feed([i]) for i in ids) + window.end() == " ".join(map(str, ids))
    assert max(lengths) <= LIMIT + 1


def test_a_window_that_cannot_be_cut_is_not() -> None:
    """Decoders that look far back get all there is, at growing intervals of trying again."""
    calls = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return "".join(str((i + len(ids[:at])) % 10) for at, i in enumerate(ids))  # by its place in the whole

    window = Window(decode, lambda i: True, lambda i: None)
    ids = [7] * 1000
    assert "".join(window.feed([i]) for i in ids) + window.end() == decode(ids)
    assert len(calls) < 1000 + 100, "few of them to try"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_without_a_token_are_shown_and_lose_nothing_beside_them(kind: str) -> None:
    ids = theirs(kind).encode("the text, the text").ids
    gap = ours(kind).size + 9
    right = theirs(kind).decode(ids, skip_special_tokens=False)
    for at in range(len(ids) + 1):
        shown = "".join(streamed(ours(kind), [*ids[:at], gap, *ids[at:]]))
        assert shown.count("�") == right.count("�") + 1 and shown.replace("�", "") == right.replace("�", "")


def test_what_is_no_text_does_not_wait() -> None:
    """Bytes that are no UTF-8, for ever, come as they are said."""
    tokenizer = ours("llama_bpe")
    ids = [theirs("llama_bpe").token_to_id("<0xFF>")] * 50
    assert streamed(tokenizer, ids) == ["�"] * 50 + [""]


@pytest.mark.parametrize("kind", KINDS)
def test_one_id_is_shown(kind: str) -> None:
    for i in range(ours(kind).size):
        shown = ours(kind).show(i)
        assert "�" not in shown or theirs(kind).id_to_token(i) in (None, "�")


def test_bytes_show_which_they_are() -> None:
    llama = theirs("llama_bpe")
    assert ours("llama_bpe").show(llama.token_to_id("<0xE8>")) == "<0xE8>"
    assert ours("byte_level_bpe").show(theirs("byte_level_bpe").token_to_id("è")) == "è", (
        "GPT-2's letter for the byte E8"
    )
    assert load_tokenizer("bytes").show(0xE8) == "\\xe8"
