"""What a Hugging Face folder says of its text is kept, as transformers understands it, or its loss is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import ArtifactError, load
from gptexport_runtime.contract.manifest import TextEntry
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.text import bundle_tokenizer
from tests.support.builders import tiny_huggingface
from tests.support.cli import Cli
from tests.support.texts import byte_level_bpe

transformers = pytest.importorskip("transformers")


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file, which may not be there; `...` takes one out."""
    said = (json.loads(path.read_text()) if path.is_file() else {}) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


Said = dict[str, Any]
EOS: list[tuple[Said, Said | None, tuple[int, ...]]] = [  # config.json, generation_config.json, what ends a text
    ({"eos_token_id": 21}, None, (21,)),
    ({"eos_token_id": [21, 5]}, None, (21, 5)),
    ({"eos_token_id": 21}, {"eos_token_id": 7}, (7,)),
    ({"eos_token_id": 21}, {"eos_token_id": [7, 8]}, (7, 8)),
    ({"eos_token_id": 21}, {"bos_token_id": 3}, ()),
    ({"eos_token_id": 21}, {"eos_token_id": None}, ()),
    ({"eos_token_id": ...}, None, ()),
    ({"eos_token_id": 0}, None, (0,)),
]


@pytest.mark.parametrize(("config", "generation", "expected"), EOS, ids=str)
def test_a_text_ends_where_transformers_ends_it(
    tmp_path: Path, config: Said, generation: Said | None, expected: tuple[int, ...]
) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    (path / "generation_config.json").unlink()
    edit(path / "config.json", **config)
    if generation is not None:
        edit(path / "generation_config.json", **generation)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path).generation_config.eos_token_id
    assert tuple(theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]) == expected
    assert load_checkpoint(str(path)).text.eos_token_ids == expected


ODD: list[tuple[object, str]] = [
    (50256, "config.json says eos_token_id 50256, which is no id of this model's 97"),
    (-1, "config.json says eos_token_id -1"),
    (True, "config.json says eos_token_id True"),
    ("</s>", "config.json says eos_token_id '</s>'"),
    ([96, 97], "config.json says eos_token_id [96, 97]"),
]


@pytest.mark.parametrize(("value", "note"), ODD, ids=str)
def test_an_id_that_the_model_does_not_have_is_told(tmp_path: Path, value: object, note: str) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    (path / "generation_config.json").unlink()
    edit(path / "config.json", eos_token_id=value)
    checkpoint = load_checkpoint(str(path))
    assert any(note in told for told in checkpoint.notes)
    assert checkpoint.text.eos_token_ids == ((96,) if value == [96, 97] else ())


@pytest.mark.parametrize("token", ["<|endoftext|>", {"content": "<|endoftext|>", "lstrip": False}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_tokenizers_end_counts_where_the_config_names_none(tmp_path: Path, token: object, file: str) -> None:
    """GPT2Config's own 50256 is in the config of many a small model."""
    path = tiny_huggingface(tmp_path / "hf", vocab_size=400)
    edit(path / "generation_config.json", eos_token_id=50256)
    byte_level_bpe().save(str(path / "tokenizer.json"))
    edit(path / file, eos_token=token)
    checkpoint = load_checkpoint(str(path))
    assert checkpoint.text.eos_token_ids == (byte_level_bpe().token_to_id("<|endoftext|>"),)
    assert any("a text ends at '<|endoftext|>'" in note for note in checkpoint.notes)
    edit(path / "generation_config.json", eos_token_id=9)
    assert load_checkpoint(str(path)).text.eos_token_ids == (9,)


def test_what_is_not_done_for_the_text_is_told(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    plain = load_checkpoint(str(path)).notes
    edit(path / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=True)
    edit(path / "tokenizer_config.json", chat_template="{{ messages }}", tokenizer_class="MineTokenizer")
    notes = load_checkpoint(str(path)).notes[len(plain) :]
    assert notes == (
        "generation_config.json asks for temperature 0.6, top_p 0.9: generate takes these as options",
        "there is a chat template, which generate does not apply: prompts go to the model as they are",
        "tokenizer_config.json names MineTokenizer, of which no file is there",
    )


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_file_beside_the_model_costs_no_more_than_what_it_says(tmp_path: Path, name: str) -> None:
    path = tiny_huggingface(tmp_path / "hf", eos_token_id=50256)
    (path / name).write_text("{")
    notes = load_checkpoint(str(path)).notes
    assert any(name in note and "what it says of the text is not used" in note for note in notes)


def test_ids_of_a_users_own_model_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "def make():\n"
        "    sizes = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=19, n_positions=12)\n"
        "    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=3, pad_token_id=4))\n"
    )
    found = load_checkpoint(f"{tmp_path / 'mine.py'}:make").text
    assert found == TextEntry(eos_token_ids=(3,), bos_token_id=2, pad_token_id=4)
    assert found.special_ids == (2, 3, 4)


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], int]:
    """A bundle whose checkpoint names an end, that comes in its greedy text: the bundle, the text to it, and it."""
    folder = tmp_path_factory.mktemp("ending")
    path = tiny_huggingface(folder / "hf", vocab_size=400, n_positions=32)
    byte_level_bpe().save(str(path / "tokenizer.json"))
    model = transformers.GPT2LMHeadModel.from_pretrained(path)
    free = model.generate(
        torch.tensor([[40, 41]]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    end = next(i for n, i in enumerate(free[0, 4:].tolist()) if i not in free[0, 2 : 4 + n].tolist())
    edit(path / "generation_config.json", eos_token_id=end)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path).generate(
        torch.tensor([[40, 41]]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, 2:].tolist()  # fmt: skip
    assert theirs[-1] == end and len(theirs) < 12
    export_onnx(load_checkpoint(str(path)), folder / "gpt")
    return folder / "gpt", theirs[:-1], end


def test_generate_ends_where_transformers_does(ending: tuple[Path, list[int], int]) -> None:
    bundle, text, end = ending
    with load(bundle) as session:
        assert session.eos_token_ids == (end,)
        assert session.generate([[40, 41]], max_new_tokens=12, temperature=0)[0].tolist() == text
        on = session.generate([[40, 41]], max_new_tokens=12, temperature=0, stop=())[0].tolist()
        assert len(on) == 12 and on[: len(text) + 1] == [*text, end]
        other = session.generate([[40, 41]], max_new_tokens=12, temperature=0, stop=[text[0]])
        assert other[0].tolist() == [], "those asked for stand for the checkpoint's"


def test_the_command_ends_there_and_says_so(cli: Cli, ending: tuple[Path, list[int], int]) -> None:
    bundle, text, end = ending
    arguments = ("generate", bundle, "--prompt-ids", "40,41", "--max-new-tokens", 12, "--temperature", 0, "--json")
    ran = cli(*arguments)
    assert json.loads(ran.out)["samples"][0]["ids"] == text
    assert f"(id {end}), as the checkpoint says; --ignore-eos goes on" in ran.err or f"ends at id {end}," in ran.err
    assert len(json.loads(cli(*arguments, "--ignore-eos").out)["samples"][0]["ids"]) == 12
    assert json.loads(cli(*arguments, "--stop", text[1]).out)["samples"][0]["ids"] == text[:1]
    assert json.loads(cli(*arguments, "--stop", 399).out)["samples"][0]["ids"] == text, "an id more, not instead"


def test_a_manifest_says_the_ids_and_is_believed_only_if_they_are_some(
    ending: tuple[Path, list[int], int], tmp_path: Path
) -> None:
    bundle, _, end = ending
    data = json.loads((bundle / MANIFEST_FILE).read_text())
    chat: dict[str, list[int]] = {"before_prompt": [], "before_message": [], "after_message": []}
    assert data["text"] == {"eos_token_ids": [end], "bos_token_id": 0, "pad_token_id": None, **chat}
    for text in ({"eos_token_ids": ["x"]}, {"eos_token_ids": 5}, {"bos_token_id": -1}, {"pad_token_id": True}):
        (tmp_path / MANIFEST_FILE).write_text(json.dumps({**data, "text": text}))
        with pytest.raises(ArtifactError, match="manifest: text"):
            bundle_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["/etc/hostname.json", "tokenizer.json", "../x.json", "p50k"])
def test_a_manifest_never_names_a_tokenizer_outside_the_bundle(
    ending: tuple[Path, list[int], int], tmp_path: Path, name: str
) -> None:
    data = json.loads((ending[0] / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({**data, "tokenizer": {"name": name, "file": None}}))
    with pytest.raises(ArtifactError, match="has no file in the bundle"):
        bundle_tokenizer(tmp_path)


SLOW = [("vocab.json", True), ("vocab.json", False)]


@pytest.mark.parametrize(("name", "merges"), SLOW)
def test_a_slow_tokenizer_travels_or_is_told(cli: Cli, tmp_path: Path, name: str, merges: bool) -> None:
    path = tiny_huggingface(tmp_path / "hf", vocab_size=400)
    byte_level_bpe().model.save(str(path))
    if not merges:
        (path / "merges.txt").unlink()
    ran = cli("onnx", path, "-o", tmp_path / "gpt", "--graphs", "logits")
    found = bundle_tokenizer(tmp_path / "gpt")
    assert ran.code == 0 and (found is not None) == merges
    if found is not None:
        assert found.decode(found.encode("naïve 語")) == "naïve 語" and f"{name} is included in the bundle" in ran.err
    else:
        assert "half of a tokenizer" in ran.err and "the bundle carries no tokenizer" in ran.err


def test_no_tokenizer_is_told(cli: Cli, tmp_path: Path) -> None:
    ran = cli("onnx", tiny_huggingface(tmp_path / "hf"), "-o", tmp_path / "gpt", "--graphs", "logits")
    assert "no tokenizer was found with the checkpoint: ids go in and come out, not text" in ran.err
    assert "--tokenizer gpt2" not in ran.err, "it is not GPT-2's vocabulary"
