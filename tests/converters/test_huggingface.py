"""`gptexport hf`: what it writes is the same model to us, to the bit, and to transformers, within rounding."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.converters import convert, gpt2, llama, proof
from gptexport.converters import huggingface as to_huggingface
from gptexport.converters.registry import CONVERTERS
from gptexport.errors import ExportError, OutputExistsError
from gptexport.export import export
from gptexport.recipe import Recipe
from gptexport.tokenizers import load_tokenizer, tokenizer_to_bundle
from gptexport.tokenizers.as_json import tokenizer_files
from tests.checkpoints.test_huggingface_llama import CASES, folder
from tests.checkpoints.test_huggingface_neox import CASES as NEOXES
from tests.support.builders import ALPHABET, nanogpt_meta, tiny_nanogpt
from tests.support.cli import Cli
from tests.support.llama_builders import tiny_neox

TEXT = "first line,\n\tand a second: 0123 \u00e9\u4f60 <|endoftext|>"


def with_fields(checkpoint: Checkpoint, **fields: Any) -> Any:
    """Its config, with these fields."""
    config: Any = checkpoint.config
    return replace(config, **fields)


def seen(checkpoint: Checkpoint) -> list[int | None]:
    """How many keys each layer's queries see."""
    config: Any = checkpoint.config
    return [config.window(layer) for layer in range(config.n_layer)]


def same_weights(ours: Checkpoint, theirs: Checkpoint) -> None:
    """Every weight of ours is there, to the bit, and what is there beside them is zero."""
    before, after = ours.model.state_dict(), theirs.model.state_dict()
    assert before.keys() <= after.keys()
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) if name in before else not weight.any(), name


GPT2S = [{}, {"bias": False}, {"tied": False, "gelu": "erf"}, {"n_inner": 20, "layer_norm_epsilon": 1e-4}]
QUICK = ("Llama 3.1", "Mistral with a window", "Qwen2 with windows and YaRN", "Qwen3 with biases")
LLAMAS = [pytest.param(case, marks=[pytest.mark.slow] if case not in QUICK else []) for case in CASES]
OTHERS = [{"n_head": 1}, {"layer_norm_epsilon": 0.1}, {"activation_function": "gelu"}]


@pytest.mark.parametrize("config", GPT2S, ids=str)
def test_gpt2_goes_there_and_back(tmp_path: Path, config: dict[str, Any]) -> None:
    known = {name: config[name] for name in config if name in ("bias", "tied")}
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", **known)), gelu=config.get("gelu", "tanh"))
    if "n_inner" in config:
        sizes = with_fields(loaded, **config)
        torch.manual_seed(0)
        model = loaded.architecture.model(sizes).eval().requires_grad_(False)
        loaded = replace(loaded, config=sizes, model=model)
    done = convert(loaded, tmp_path / "hf")
    again = load_checkpoint(str(tmp_path / "hf"))
    assert done.class_name == "GPT2LMHeadModel" and done.noise_ratio is not None and 0 < done.noise_ratio <= 2
    assert again.config == with_fields(loaded, bias=True)
    same_weights(loaded, again)


def test_an_export_of_the_folder_has_the_same_weights(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    convert(loaded, tmp_path / "hf")
    recipe = Recipe.of(graphs=["logits"])
    export(loaded, tmp_path / "direct", recipe)
    export(load_checkpoint(str(tmp_path / "hf")), tmp_path / "round", recipe)
    direct, again = ((tmp_path / name / "weights.data").read_bytes() for name in ("direct", "round"))
    assert direct == again


@pytest.mark.parametrize("case", LLAMAS)
def test_llama_and_its_relatives_go_there_and_back(tmp_path: Path, case: str) -> None:
    kind, config = CASES[case]
    folder(tmp_path / "theirs", kind, **config)
    loaded = load_checkpoint(str(tmp_path / "theirs"))
    done = convert(loaded, tmp_path / "hf")
    again = load_checkpoint(str(tmp_path / "hf"))
    assert done.noise_ratio is not None and 0 < done.noise_ratio <= 2
    assert seen(again) == seen(loaded)
    same_weights(loaded, again)


@pytest.mark.parametrize("case", NEOXES)
def test_gpt_neox_goes_there_and_back(tmp_path: Path, case: str) -> None:
    tiny_neox(**NEOXES[case]).save_pretrained(tmp_path / "theirs")
    loaded = load_checkpoint(str(tmp_path / "theirs"))
    done = convert(loaded, tmp_path / "hf")
    again = load_checkpoint(str(tmp_path / "hf"))
    assert done.class_name == "GPTNeoXForCausalLM" and done.noise_ratio is not None and 0 < done.noise_ratio <= 2
    assert again.config == loaded.config
    same_weights(loaded, again)


def test_a_gpt_neox_without_biases_gets_zeros(tmp_path: Path) -> None:
    """As LitGPT has them. And 30 of 44 numbers turn, a share that floats make 29 of."""
    half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    sizes = {"hidden_size": 44, "num_attention_heads": 1, "rope_parameters": half}
    tiny_neox(**sizes, attention_bias=False).save_pretrained(tmp_path / "theirs")
    loaded = load_checkpoint(str(tmp_path / "theirs"))
    config = with_fields(loaded, mlp_bias=False, rotary_size=30)
    torch.manual_seed(0)
    loaded = replace(loaded, config=config, model=loaded.architecture.model(config).eval().requires_grad_(False))
    done = convert(loaded, tmp_path / "hf")
    again = load_checkpoint(str(tmp_path / "hf"))
    assert done.noise_ratio is not None and again.config == with_fields(loaded, mlp_bias=True)
    same_weights(loaded, again)


def test_a_text_goes_on_behind_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the texts that every model is compared on; a class that has another window is then found out."""
    folder(tmp_path / "theirs", "Mistral", sliding_window=80, max_position_embeddings=160)
    loaded = load_checkpoint(str(tmp_path / "theirs"))
    assert "window" not in "".join(convert(loaded, tmp_path / "hf").notes)

    def fields(config: Any) -> dict[str, Any]:
        return {**llama.CONVERTER.fields(config), "sliding_window": 81}

    monkeypatch.setitem(CONVERTERS, "llama", replace(llama.CONVERTER, fields=fields))
    with pytest.raises(ExportError, match="computes another model of what was written"):
        convert(loaded, tmp_path / "off by one")
    monkeypatch.setattr(proof, "LONGEST", 100)
    done = convert(loaded, tmp_path / "short")
    assert "none is longer than its window of 80" in done.notes[-1]


def test_weights_are_stored_in_16_bits(tmp_path: Path) -> None:
    folder(tmp_path / "theirs", "Qwen3")
    done = convert(load_checkpoint(str(tmp_path / "theirs")), tmp_path / "hf", dtype="bfloat16")
    assert done.class_name == "Qwen3ForCausalLM" and done.noise_ratio is not None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_a_model_that_no_class_computes_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "theirs", "Llama")
    loaded = load_checkpoint(str(tmp_path / "theirs"))
    odd = replace(loaded, config=with_fields(loaded, out_bias=True))
    with pytest.raises(ExportError, match=r"no class of transformers computes this model.*out_bias True"):
        convert(odd, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_module_of_ones_own_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch.nn as nn\nmodel = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))\nmodel.block_size = 8\n"
    )
    ran = cli("hf", f"{tmp_path / 'mine.py'}:model", "-o", tmp_path / "hf")
    assert ran.code == 1 and "is not written for other systems" in ran.err
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("field", OTHERS, ids=str)
def test_a_folder_of_another_model_is_not_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: dict[str, Any]
) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")), gelu="tanh")

    def fields(config: GPTConfig) -> dict[str, Any]:
        return {**gpt2.CONVERTER.fields(config), **field}

    monkeypatch.setitem(CONVERTERS, "gpt2", replace(gpt2.CONVERTER, fields=fields))
    with pytest.raises(ExportError, match=r"computes another model of what was written: .* × eager's noise"):
        convert(loaded, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_transformers_itself_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that only transformers reads."""
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")), gelu="tanh")
    real = proof.in_transformers

    def doubled(path: Path) -> Any:
        found = real(path)
        assert found is not None
        return (lambda ids: found[0](ids) * 1.001), found[1]

    monkeypatch.setattr(to_huggingface, "in_transformers", doubled)
    with pytest.raises(ExportError, match=r"transformers 5\S* computes another model"):
        convert(loaded, tmp_path / "hf")


def test_without_transformers_it_says_so(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    ran = cli("hf", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "hf", "--json")
    assert ran.code == 0 and json.loads(ran.out)["noise_ratio"] is None
    assert "transformers is not installed, so its own logits were not compared" in ran.err


def test_what_is_there_stays(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        convert(loaded, tmp_path / "hf")
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["bytes", "characters"])
def test_transformers_reads_the_tokenizer(tmp_path: Path, name: str) -> None:
    source = name if name == "bytes" else str(nanogpt_meta(tmp_path / "meta.pkl", ALPHABET))
    text = TEXT if name == "bytes" else "".join(ALPHABET[:40]) + "\n  "
    words = tokenizer_to_bundle(source)
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=words.size)))
    convert(loaded, tmp_path / "hf", tokenizer=words)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    known = "".join(c for c in text if name == "bytes" or c in ALPHABET)
    ids = load_tokenizer(source).encode(known)
    assert theirs(known)["input_ids"] == ids and theirs.decode(ids) == known


def test_the_command_says_what_it_made(cli: Cli, tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    ran = cli("hf", ckpt, "-o", tmp_path / "hf", "--dtype", "float16", "--json")
    answer = json.loads(ran.out)
    assert ran.code == 0 and answer["class"] == "GPT2LMHeadModel" and answer["noise_ratio"] <= 2
    assert "no tokenizer was found with the checkpoint" in ran.err
    assert (tmp_path / "hf" / "model.safetensors").stat().st_mode == (tmp_path / "hf" / "config.json").stat().st_mode
    assert cli("hf", ckpt, "-o", tmp_path / "hf.onnx").code == 2
    assert cli("hf", ckpt, "-o", tmp_path / "hf").code == 1


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=61)))
    with pytest.raises(ExportError, match="256 ids, the model's vocabulary 61: it is not this model's"):
        convert(loaded, tmp_path / "hf", tokenizer=tokenizer_to_bundle("bytes"))


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "holds NaN or Inf"), (1e5, "reaches 1e.05, which float16")]
)
def test_weights_that_cannot_be_stored_are_named(tmp_path: Path, value: float, message: str) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    with torch.no_grad():
        loaded.model.get_parameter("transformer.h.0.mlp.c_fc.weight")[0, 0] = value
    with pytest.raises(ExportError, match=rf"mlp.c_fc.weight {message}"):
        convert(loaded, tmp_path / "hf", dtype="float16")


def test_special_tokens_and_chats_go_with_a_folders_tokenizer(cli: Cli, tmp_path: Path) -> None:
    folder(tmp_path / "theirs", "Llama", vocab_size=260, bos_token_id=256, eos_token_id=257)
    made = tokenizer_files(tokenizer_to_bundle("bytes"), 64)[0]
    (tmp_path / "theirs" / "tokenizer.json").write_bytes(made["tokenizer.json"])
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(words))
    assert cli("hf", tmp_path / "theirs", "-o", tmp_path / "hf", "-q").code == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.eos_token == "</s>" and theirs.chat_template == "{{ messages }}"
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == 257


def test_special_ids_beyond_the_vocabulary_are_left_out(cli: Cli, tmp_path: Path) -> None:
    folder(tmp_path / "theirs", "Llama", vocab_size=97, bos_token_id=1, eos_token_id=95)
    ran = cli("hf", tmp_path / "theirs", "-o", tmp_path / "hf", "--vocab-size", 90)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert ran.code == 0 and (config["bos_token_id"], config["eos_token_id"]) == (1, None)
    assert "special ids [95] are left out: the vocabulary ends at 90" in ran.err
