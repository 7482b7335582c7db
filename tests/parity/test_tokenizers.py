"""Plain text, with the tokenizers that people have; none of them runs code that a file carries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from gptexport.parity import read_tokens
from gptexport.tokenizers import load_tokenizer
from gptexport_runtime import GPTExportError
from tests.support.builders import nanogpt_meta
from tests.support.cli import Cli

TEXT = "the cat, the hat"


def test_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("hé") == [104, 195, 169]
    assert [tokenizer.show(i) for i in (104, 195)] == ["h", "\\xc3"]
    (tmp_path / "a.txt").write_text(TEXT)
    assert read_tokens(tmp_path / "a.txt", 256, tokenizer).tolist() == list(TEXT.encode())


def meta(path: Path, **more: object) -> Path:
    return nanogpt_meta(path, sorted(set(TEXT)), **more)


def test_nanogpt_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(meta(tmp_path / "meta.pkl")))
    assert "".join(tokenizer.show(i) for i in tokenizer.encode(TEXT)) == TEXT
    with pytest.raises(GPTExportError, match="does not have: 'XY'"):
        tokenizer.encode("the YX")


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = meta(tmp_path / "meta.pkl", evil=Evil())
    with pytest.raises(GPTExportError, match="it would run"):
        load_tokenizer(str(path))
    assert not (tmp_path / "ran").exists()


def test_huggingface(tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("the cat dog") == [0, 1, 2]
    assert tokenizer.show(1) == "cat"


def test_gpt2_needs_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(GPTExportError, match="pip install tiktoken"):
        load_tokenizer("gpt2")


@pytest.mark.parametrize("name", ["gpt3", "gone.json", "meta.pkl"])
def test_what_is_no_tokenizer(name: str) -> None:
    with pytest.raises(GPTExportError, match="is not a tokenizer: expected bytes, gpt2"):
        load_tokenizer(name)


def test_damaged_files(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "meta.pkl"):
        (tmp_path / name).write_bytes(b"{")
        with pytest.raises(GPTExportError, match=name):
            load_tokenizer(str(tmp_path / name))


def test_plain_text_through_the_command_line(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    from tests.support.faults import tampered

    text = tmp_path / "text.txt"
    text.write_text(TEXT * 9)
    made = tampered(bundle, tmp_path / "b")
    arguments = ("parity", made, "--against", checkpoint, "--shapes", "2x17", "--tokens", text)
    assert "For plain text also pass --tokenizer" in cli(*arguments).err
    ran = cli(*arguments, "--tokenizer", meta(tmp_path / "meta.pkl"))
    assert ran.code == 0, ran.err
    assert "perplexity" in ran.out
    assert cli(*arguments, "--tokenizer", "bytes").code == 1, "97 ids do not hold every byte"


def test_plain_text_by_the_bundles_own_tokenizer(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    assert cli("onnx", checkpoint, "-o", tmp_path / "b", "--tokenizer", nanogpt_meta(tmp_path / "meta.pkl")).code == 0
    (tmp_path / "text.txt").write_text("The cat, the hat: é 語!" * 9)
    arguments = ("parity", tmp_path / "b", "--against", checkpoint, "--shapes", "2x17", "--quick")
    ran = cli(*arguments, "--tokens", tmp_path / "text.txt", "--report", tmp_path / "a.html")
    assert ran.code == 0, ran.err
    assert "perplexity" in ran.out and "语" not in ran.out
    assert "hat:␣é" in (tmp_path / "a.html").read_text(encoding="utf-8"), "the report shows text, not ids"


def test_ids_keep_their_values(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1, 2, 96], np.int32))
    assert read_tokens(tmp_path / "a.npy", 97).tolist() == [1, 2, 96]
