"""Hugging Face GPT-2 folders, against transformers itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints import load_checkpoint
from gptexport.checkpoints.formats.huggingface_config import ACTIVATIONS, ALIASES, DEFAULTS, REFUSED
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.builders import tiny_huggingface
from tests.support.nanogpt_reference import relative_rms

transformers = pytest.importorskip("transformers")
IDX = torch.tensor([[5, 0, 96, 31, 31, 7, 2], [1, 2, 3, 4, 5, 6, 90]])


def expected_logits(path: Path) -> torch.Tensor:
    model = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDX).logits


def edit(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


CONTAINERS = [
    {},
    {"sharded": True},
    {"prefix": False},
    {"prefix": False, "sharded": True},
    {"safetensors": False},
    {"safetensors": False, "sharded": True},
    {"safetensors": False, "legacy": True, "prefix": False},
]


@pytest.mark.parametrize("container", CONTAINERS, ids=str)
def test_every_container_computes_what_transformers_does(tmp_path: Path, container: dict[str, Any]) -> None:
    path = tiny_huggingface(tmp_path / "hf", **container)
    checkpoint = load_checkpoint(str(path))
    assert relative_rms(checkpoint.model(IDX), expected_logits(path)) <= 2e-6
    assert (checkpoint.format, checkpoint.assumed.get("gelu")) == ("huggingface", "checkpoint")


FIELDS: list[dict[str, Any]] = [
    {"n_inner": 50},
    {"layer_norm_epsilon": 0.3},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"activation_function": "gelu"},
    {"activation_function": "gelu_pytorch_tanh"},
    {"reorder_and_upcast_attn": True},
    {"n_layer": 1, "n_head": 5, "n_embd": 35, "vocab_size": 101, "n_positions": 7},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_every_field_that_changes_the_result_is_honoured(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tiny_huggingface(tmp_path / "hf", **fields)
    expected = expected_logits(path)
    assert relative_rms(load_checkpoint(str(path)).model(IDX), expected) <= 2e-6


@pytest.mark.parametrize("fields", [f for f in FIELDS[:5] if "n_inner" not in f] + [FIELDS[6]], ids=str)
def test_those_fields_do_change_the_result(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The check above would pass on a loader that ignored a field without effect."""
    path = tiny_huggingface(tmp_path / "hf", **fields)
    expected = expected_logits(path)
    edit(path, **dict.fromkeys(fields, ...))
    assert relative_rms(load_checkpoint(str(path)).model(IDX), expected) > 2e-5


def test_every_field_of_gpt2config_is_accounted_for() -> None:
    """A field that a new transformers adds must be honoured or refused before this passes again."""
    no_effect = {
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "use_cache", "reorder_and_upcast_attn"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "model_type", "architectures", "dtype", "_name_or_path"),
        *("transformers_version", "output_hidden_states", "output_attentions", "return_dict", "id2label", "label2id"),
        *("problem_type", "chunk_size_feed_forward", "is_encoder_decoder"),
    }
    config = transformers.GPT2Config()
    assert set(config.to_dict()) - set(DEFAULTS) - set(REFUSED) - no_effect == set()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert config.attribute_map == ALIASES


def test_activations_are_the_two_gelus() -> None:
    """Every name in the table computes, in float32, the GELU it stands for."""
    from transformers.activations import ACT2FN

    x = torch.linspace(-9, 9, 20001)
    for name, gelu in ACTIVATIONS.items():
        expected = torch.nn.functional.gelu(x, approximate="tanh" if gelu == "tanh" else "none")
        torch.testing.assert_close(ACT2FN[name](x), expected, rtol=1e-5, atol=1e-6, msg=name)


def test_absent_fields_take_transformers_defaults(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    names = ["activation_function", "layer_norm_epsilon", "n_inner", "scale_attn_weights", "tie_word_embeddings"]
    edit(path, **dict.fromkeys([*names, "scale_attn_by_inverse_layer_idx", "model_type", "architectures"], ...))
    checkpoint = load_checkpoint(str(path))
    assert isinstance(checkpoint.config, GPTConfig)
    assert (checkpoint.config.gelu, checkpoint.assumed.get("gelu"), checkpoint.config.tied) == ("tanh", "format", True)


def test_aliases_are_read_and_must_agree(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    edit(path, n_embd=..., hidden_size=30, n_positions=..., max_position_embeddings=17)
    assert load_checkpoint(str(path)).block_size == 17
    edit(path, n_embd=31)
    with pytest.raises(CheckpointError, match="n_embd is 31 and its alias hidden_size is 30"):
        load_checkpoint(str(path))


REFUSALS = [
    ({"activation_function": "relu"}, "activation_function is 'relu'"),
    ({"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'"),
    ({"activation_function": None}, "activation_function is None"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"layer_norm_epsilon": "tiny"}, "layer_norm_epsilon is 'tiny'"),
    ({"layer_norm_epsilon": -1}, "layer_norm_epsilon is -1"),
    ({"scale_attn_weights": 1}, "scale_attn_weights is 1"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    ({"n_head": 7}, "n_embd 30 is not a multiple of n_head 7"),
    ({"n_positions": 17.0}, r"n_positions is 17\.0"),
    ({"n_inner": 0}, "n_inner is 0"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map names the repository's own code"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSALS, ids=lambda value: str(value))
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    edit(path, **fields)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(str(path))
    assert "config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "GPT2ForSequenceClassification"),
    ],
)
def test_other_models_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    edit(path, **fields)
    with pytest.raises(UnknownCheckpointError, match=message):
        load_checkpoint(str(path))


def test_empty_markers_refuse_nothing(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    edit(
        path,
        pruned_heads={},
        quantization_config=None,
        auto_map={"AutoTokenizer": "t.T"},
        n_ctx=17,
        torch_dtype="float16",
    )
    assert load_checkpoint(str(path)).format == "huggingface"


def test_a_tied_config_with_another_head_stored_is_refused(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf", tie_word_embeddings=False)
    edit(path, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings, but the stored lm_head\.weight differs"):
        load_checkpoint(str(path))


def test_a_tied_config_with_the_same_head_stored_is_tied(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    weights = load_file(path / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}, path / "model.safetensors")
    config = load_checkpoint(str(path)).config
    assert isinstance(config, GPTConfig) and config.tied


def test_an_untied_config_without_a_head_lacks_it(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    edit(path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing +lm_head\.weight"):
        load_checkpoint(str(path))


def test_mask_buffers_of_old_folders_are_dropped(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf", prefix=False)
    weights = load_file(path / "model.safetensors")
    weights["h.0.attn.bias"] = torch.ones(1, 1, 17, 17, dtype=torch.uint8).tril()
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, path / "model.safetensors")
    assert load_checkpoint(str(path)).format == "huggingface"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folders_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tiny_huggingface(tmp_path / "hf", dtype=dtype)
    checkpoint = load_checkpoint(str(path))
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert relative_rms(checkpoint.model(IDX), expected_logits(path)) <= 2e-6


def test_a_safetensors_file_of_any_name_is_read_when_it_is_the_only_one(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    (path / "model.safetensors").rename(path / "weights.safetensors")
    assert load_checkpoint(str(path)).format == "huggingface"
    (path / "copy.safetensors").write_bytes((path / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"several weight files \(copy\.safetensors, weights\.safetensors\)"):
        load_checkpoint(str(path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf", sharded=True)
    shard = sorted(path.glob("*.safetensors"))[3]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"1 of [0-9]+ shards are not there: {re.escape(shard.name)}"):
        load_checkpoint(str(path))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "c:x", "a\\b", 7, None]
)
def test_shard_names_must_be_plain(tmp_path: Path, name: object) -> None:
    path = tiny_huggingface(tmp_path / "hf", sharded=True)
    index = path / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["transformer.wpe.weight"] = name
    index.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="expected a plain file name in the same folder"):
        load_checkpoint(str(path))


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf", sharded=True)
    index = path / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    del value["weight_map"]["transformer.wpe.weight"]
    index.write_text(json.dumps(value))
    with pytest.raises(
        CheckpointError, match=r"does not hold what the index says; they differ in: transformer\.wpe\.weight"
    ):
        load_checkpoint(str(path))
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        load_checkpoint(str(path))


def test_weights_of_other_frameworks_only(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    (path / "model.safetensors").rename(path / "flax_model.msgpack")
    with pytest.raises(CheckpointError, match=r"no weights that gptexport reads.*flax_model\.msgpack"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00002-of-00010.safetensors"])
@pytest.mark.parametrize("keep", [0.5, 0.01])
def test_truncated_files_are_named_with_their_size(tmp_path: Path, name: str, keep: float) -> None:
    path = tiny_huggingface(tmp_path / "hf", sharded=True)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=rf"{name}.*{int(len(data) * keep):,} bytes.*truncated or corrupt"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"gpt2"'])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    (path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_of_tied_weights_either_may_be_stored(tmp_path: Path, kept: str) -> None:
    """safetensors' save_model keeps one of them, whichever comes first by its own rules."""
    path = tiny_huggingface(tmp_path / "hf")
    expected = expected_logits(path)
    weights = load_file(path / "model.safetensors")
    tied = weights.pop("transformer.wte.weight")
    save_file(weights | {kept: tied}, path / "model.safetensors")
    checkpoint = load_checkpoint(str(path))
    assert relative_rms(checkpoint.model(IDX), expected) <= 2e-6
    loaded = checkpoint.model.state_dict()
    assert loaded["lm_head.weight"].data_ptr() == loaded["transformer.wte.weight"].data_ptr(), "one tensor"
    edit(path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing +(transformer\.wte|lm_head)\.weight"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("head", ["multiple_choice_head.summary", "v_head.summary"])
def test_heads_that_make_no_logits_are_left_out_and_said(tmp_path: Path, head: str) -> None:
    path = tiny_huggingface(tmp_path / "hf", architectures=["GPT2DoubleHeadsModel"])
    expected = expected_logits(path)
    weights = load_file(path / "model.safetensors")
    save_file(
        weights | {f"{head}.weight": torch.ones(1, 30), f"{head}.bias": torch.ones(1)}, path / "model.safetensors"
    )
    checkpoint = load_checkpoint(str(path))
    assert relative_rms(checkpoint.model(IDX), expected) <= 2e-6
    assert f"{head.partition('.')[0]} is left out: it makes no logits" in checkpoint.notes


def test_a_double_heads_model_is_read(tmp_path: Path) -> None:
    model = transformers.GPT2DoubleHeadsModel(
        transformers.GPT2Config(vocab_size=97, n_positions=17, n_embd=30, n_layer=2, n_head=3, num_labels=1)
    ).eval()
    model.save_pretrained(tmp_path / "hf")
    with torch.no_grad():
        expected = model(IDX, use_cache=False).logits
    assert relative_rms(load_checkpoint(str(tmp_path / "hf")).model(IDX), expected) <= 2e-6


BESIDE = [
    ("adapter_config.json", b"{}"),
    ("adapter_model.safetensors", b"x"),
    ("gptexport.json", b"{}"),
    ("lit_model.pth", b"x"),
    ("hparams.json", b"{}"),
    ("training_args.bin", b"x"),
    ("other.safetensors", b"x"),
    ("flax_model.msgpack", b"x"),
    ("ckpt.pt", b"x"),
]


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize(("name", "data"), BESIDE)
def test_what_lies_beside_a_model_does_not_hide_it(tmp_path: Path, name: str, data: bytes, safetensors: bool) -> None:
    path = tiny_huggingface(tmp_path / "hf", safetensors=safetensors)
    (path / name).write_bytes(data)
    assert load_checkpoint(str(path)).format == "huggingface"


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "module"])
def test_a_bin_with_its_weights_under_a_name_is_read(tmp_path: Path, entry: str) -> None:
    path = tiny_huggingface(tmp_path / "hf", safetensors=False)
    weights = torch.load(path / "pytorch_model.bin")
    torch.save({entry: weights, "epoch": 3}, path / "pytorch_model.bin")
    assert load_checkpoint(str(path)).format == "huggingface"


WRAPPERS = ["module.", "_orig_mod.", "model.", "gpt.net.", "module._orig_mod.model.", "_fsdp_wrapped_module."]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_under_any_wrapper(tmp_path: Path, wrapper: str, prefix: bool) -> None:
    path = tiny_huggingface(tmp_path / "hf", prefix=prefix)
    expected = expected_logits(path)
    weights = load_file(path / "model.safetensors")
    save_file({wrapper + name: weight for name, weight in weights.items()}, path / "model.safetensors")
    assert relative_rms(load_checkpoint(str(path)).model(IDX), expected) <= 2e-6


def test_two_models_in_one_file_are_not_taken_for_one(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    weights = load_file(path / "model.safetensors")
    both = {f"{part}.{name}": weight.clone() for name, weight in weights.items() for part in ("model", "ema")}
    save_file(both, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected +transformer\.ema\.transformer\.wte\.weight"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_pointer_of_git_lfs_is_named_wherever_it_lies(tmp_path: Path, name: str) -> None:
    path = tiny_huggingface(tmp_path / "hf", safetensors=name != "pytorch_model.bin")
    (path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match=rf"{name}: a Git LFS pointer, not the file itself.*git lfs pull"):
        load_checkpoint(str(path))


ODD_FIELDS: list[dict[str, Any]] = [
    {"architectures": 5},
    {"architectures": [["GPT2LMHeadModel"]]},
    {"activation_function": []},
    {"layer_norm_epsilon": 10**400},
]


@pytest.mark.parametrize("fields", ODD_FIELDS, ids=lambda fields: next(iter(fields)))
def test_a_field_of_another_kind_is_our_error(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tiny_huggingface(tmp_path / "hf")
    edit(path, **fields)
    with pytest.raises(CheckpointError, match=next(iter(fields))):
        load_checkpoint(str(path))
