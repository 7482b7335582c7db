"""`gptexport generate --chat`: nanochat's format, from what its tokenizer.pkl calls special."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.tokenizers import found_with
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.format_builders import pickled
from tests.support.nanochat_builders import nanochat, state_of
from tests.tokenizers.test_tiktoken_pickle import state_of as encoding

CHAT = ["bos", "user_start", "user_end", "assistant_start", "assistant_end"]
NAMES = [*CHAT, "python_start", "python_end", "output_start", "output_end"]
SPECIAL = {f"<|{name}|>": 256 + i for i, name in enumerate(NAMES)}
BOS, USER, END_OF_USER, ASSISTANT, END_OF_ASSISTANT = range(256, 261)
SAY = ("--max-new-tokens", 3, "--temperature", 0, "--json")


def write(folder: Path, special: dict[str, int]) -> Path:
    """A checkpoint of bytes and special tokens, its tokenizer beside it."""
    path = nanochat(folder, state_of(12, True, True, padded=320), vocab_size=265, sequence_len=64)
    ranks = {bytes([byte]): byte for byte in range(256)}
    pickled(folder / "tokenizer.pkl", encoding(ranks, special_tokens=special))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    checkpoint = load_checkpoint(str(write(folder / "d5", SPECIAL)))
    words, _ = found_with(checkpoint)
    return export_onnx(checkpoint, folder / "gpt", graphs=["logits"], tokenizer=words).path


def test_a_message_stands_between_the_tokens_that_training_put_around_it(cli: Cli, bundle: Path) -> None:
    ran = cli("generate", bundle, "--chat", "--prompt", "Hi", *SAY)
    assert json.loads(ran.out)["prompt_ids"] == [BOS, USER, *b"Hi", END_OF_USER, ASSISTANT]


def test_a_text_to_go_on_from_begins_with_bos(cli: Cli, bundle: Path) -> None:
    assert json.loads(cli("generate", bundle, "--prompt", "Hi", *SAY).out)["prompt_ids"] == [BOS, *b"Hi"]
    assert json.loads(cli("generate", bundle, "--prompt-ids", "72", *SAY).out)["prompt_ids"] == [72]
    manifest = json.loads((bundle / "gptexport.json").read_text())
    assert manifest["text"]["eos_token_ids"] == [END_OF_ASSISTANT, BOS]


def test_tokens_that_are_not_there_are_not_used(tmp_path: Path) -> None:
    text = load_checkpoint(str(write(tmp_path / "bos", {"<|bos|>": 256}))).text
    assert (text.before_prompt, text.before_message, text.eos_token_ids) == ((BOS,), (), (BOS,))
    checkpoint = load_checkpoint(str(write(tmp_path / "large", {"<|bos|>": 265})))
    assert checkpoint.text.before_prompt == () and any("no <|bos|>" in note for note in checkpoint.notes)


def test_what_has_no_chat_format_says_so(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=256))), tmp_path / "gpt")
    ran = cli("generate", tmp_path / "gpt", "--chat", "--prompt", "Hi", "--tokenizer", "bytes")
    assert ran.code != 0 and "the bundle has no chat format" in ran.err
    ran = cli("generate", bundle, "--chat", "--prompt-ids", "72")
    assert ran.code == 2 and "--chat answers a message" in ran.err
