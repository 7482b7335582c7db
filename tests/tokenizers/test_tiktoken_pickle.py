"""nanochat's tokenizer.pkl becomes a tokenizer.json of the same ids."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import regex

from gptexport.tokenizers import load_tokenizer as load_any
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport.tokenizers.tiktoken_pickle import json_of_tiktoken
from gptexport_runtime import GPTExportError
from gptexport_runtime.text import load_tokenizer
from tests.support.format_builders import pickled

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL = ("<|bos|>", "<|user_start|>", "<|user_end|>")
TEXTS = [
    "Hello there, it's 12345 o'clock!  Is it?\n\n\tYes -- it'LL be.",
    "naïve façade, 語と言 🙂 x²",
    "   leading and trailing   ",
    "aaaaaaaaaaaa 1 22 333\r\n\r\n??!!\n",
    "",
]
TRAINED_ON = "Hello there, hello again; it's the same hello as there was. 語と言語と言 12 12 aaaa   \n\n" * 3


def pieces(text: str) -> list[bytes]:
    return [piece.encode() for piece in regex.findall(PATTERN, text)]


def merged(parts: list[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding by rank, the pair of lowest rank first."""
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not found:
            return parts
        _, i = min(found)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]


def trained(size: int) -> dict[bytes, int]:
    """Ranks as a trainer finds them: the commonest pair becomes the next token."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in piece] for piece in pieces(TRAINED_ON)]
    while len(ranks) < size:
        counts: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        words = [merged([bytes([byte]) for byte in b"".join(word)], ranks) for word in words]
    return ranks


def state_of(ranks: dict[bytes, int], **changes: Any) -> dict[str, Any]:
    special = {text: len(ranks) + i for i, text in enumerate(SPECIAL)}
    return {"name": "rustbpe", "pat_str": PATTERN, "mergeable_ranks": ranks, "special_tokens": special, **changes}


def test_it_encodes_as_byte_pairs_by_rank(tmp_path: Path) -> None:
    ranks = trained(300)
    written = tmp_path / "tokenizer.json"
    written.write_bytes(json_of_tiktoken(pickled(tmp_path / "tokenizer.pkl", state_of(ranks))))
    tokenizer = load_tokenizer(str(written))
    assert tokenizer.size == 300 + len(SPECIAL)
    for text in TEXTS:
        ids = [ranks[part] for piece in pieces(text) for part in merged([bytes([b]) for b in piece], ranks)]
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([301]) == "<|user_start|>"


def test_a_token_is_merged_of_what_earlier_merges_leave(tmp_path: Path) -> None:
    """Of `ab` before `bc`, `abc` is made of `ab` and `c`; the other way round of `a` and `bc`."""
    for first, second, halves in ((b"ab", b"bc", ["ab", "c"]), (b"bc", b"ab", ["a", "bc"])):
        ranks = {bytes([byte]): byte for byte in range(256)} | {first: 256, second: 257, b"abc": 258}
        made = json.loads(json_of_tiktoken(pickled(tmp_path / "tokenizer.pkl", state_of(ranks))))
        assert made["model"]["merges"][-1] == halves


def test_it_travels_and_is_loaded_as_it_is(tmp_path: Path) -> None:
    path = pickled(tmp_path / "tokenizer.pkl", state_of(trained(280)))
    carried = tokenizer_to_bundle(str(path))
    assert (carried.name, carried.size, carried.data) == ("tokenizer.json", 283, json_of_tiktoken(path))
    assert load_any(str(path)).decode([281]) == "<|user_start|>"


def test_it_is_the_same_file_every_time(tmp_path: Path) -> None:
    path = pickled(tmp_path / "tokenizer.pkl", state_of(trained(280)))
    assert json_of_tiktoken(path) == json_of_tiktoken(path)
    assert len(json.loads(json_of_tiktoken(path))["model"]["merges"]) == 280 - 256


RANKS = {bytes([byte]): byte for byte in range(256)}
BAD: list[tuple[Any, str]] = [
    ("gpt2", "it holds 'gpt2'"),
    (state_of({**RANKS, b"abc": 256}), r"no merge of earlier tokens makes b'abc'"),
    (state_of({**RANKS, b"ab": 300}), "the ranks are not 0, 1, 2"),
    (state_of({b"a": 0}), "no token is the byte 0"),
    (state_of(RANKS, special_tokens={"<|bos|>": 5}), "a special token has the id of another"),
    (state_of(RANKS, special_tokens={"<|bos|>": "5"}), "special_tokens is no dict of texts and ids"),
    (state_of(RANKS, pat_str=None), "pat_str is None"),
    ({"name": "x"}, "mergeable_ranks"),
]


@pytest.mark.parametrize(("state", "message"), BAD)
def test_what_is_no_encoding_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(GPTExportError, match=message):
        json_of_tiktoken(pickled(tmp_path / "tokenizer.pkl", state))


def test_no_code_is_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('it ran')",)

    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(GPTExportError, match=r"it would run builtins\.exec"):
        json_of_tiktoken(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(GPTExportError, match=r"it is no tiktoken\.Encoding"):
        json_of_tiktoken(path)
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(GPTExportError, match=r"not a pickled tiktoken\.Encoding"):
        json_of_tiktoken(path)


def test_it_takes_no_memory_that_it_only_names(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(b"\x80\x02\x8c\x08tiktokenr\x00\x00\x00\x10.")  # a memo of 2^28 places
    with pytest.raises(GPTExportError, match="made to take memory"):
        json_of_tiktoken(path)
