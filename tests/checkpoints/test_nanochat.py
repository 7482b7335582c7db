"""nanochat's checkpoints of every generation: read to the logits of its description, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.nanochat_builders import GENERATIONS, SEQUENCE, H, K, V, nanochat, state_of
from tests.support.nanochat_reference import Facts, nanochat_logits
from tests.support.nanogpt_reference import relative_rms

IDX = torch.arange(SEQUENCE).reshape(1, SEQUENCE) * 29 % V


def expected(state: dict[str, torch.Tensor], facts: Facts) -> torch.Tensor:
    weights: dict[str, Any] = {name: weight.double().numpy() for name, weight in state.items()}
    logits: np.ndarray[Any, Any] = nanochat_logits(weights, IDX.numpy(), facts, n_head=H, n_kv_head=K)
    return torch.from_numpy(logits[..., :V])


@torch.no_grad()
@pytest.mark.parametrize("since", GENERATIONS)
def test_the_weights_tell_which_code_trained_them(tmp_path: Path, since: str) -> None:
    """Logits are those of that generation, beyond its window, without the rows that pad the vocabulary."""
    channels, lambdas, smear, facts = GENERATIONS[since]
    state = state_of(channels, lambdas, smear)
    pattern: dict[str, Any] = {} if lambdas else {"window_pattern": ...}
    checkpoint = load_checkpoint(str(nanochat(tmp_path / "d5", state, **pattern)))
    assert relative_rms(checkpoint.model(IDX), expected(state, facts)) <= 2e-6
    assert (checkpoint.format, checkpoint.vocab_size, checkpoint.block_size) == ("nanochat", V, SEQUENCE)
    assert any(f"code of {since}" in note for note in checkpoint.notes)


@torch.no_grad()
def test_the_softcap_of_early_2026_is_asked_for(tmp_path: Path) -> None:
    channels, lambdas, smear, facts = GENERATIONS["2026-01-16"]
    state = state_of(channels, lambdas, smear)
    path = str(nanochat(tmp_path / "d5", state))
    assert any("SOFTCAP taken as 15" in note and "--softcap 20" in note for note in load_checkpoint(path).notes)
    later = Facts(facts.rope_base, facts.qk_gain, facts.value_gain, facts.windows, 20.0)
    assert relative_rms(load_checkpoint(path, softcap=20.0).model(IDX), expected(state, later)) <= 2e-6
    with pytest.raises(CheckpointError, match="softcap is 30"):
        load_checkpoint(path, softcap=30.0)


def test_other_generations_do_not_ask(tmp_path: Path) -> None:
    path = nanochat(tmp_path / "d5", state_of(12, True, True))
    assert not any("SOFTCAP" in note for note in load_checkpoint(str(path)).notes)


def test_a_vocabulary_that_was_never_padded_is_read(tmp_path: Path) -> None:
    """As before 2025-12-09."""
    path = nanochat(tmp_path / "d5", state_of(0, False, False, padded=V), window_pattern=...)
    assert load_checkpoint(str(path)).vocab_size == V


def test_files_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    state = state_of(12, True, True)
    nanochat(tmp_path / "d5", state, step=1000, sequence_len=200)
    path = nanochat(tmp_path / "d5", state, step=2000)
    assert load_checkpoint(str(path)).block_size == SEQUENCE
    renamed = path.rename(path.with_name("model.pt"))
    with pytest.raises(CheckpointError, match=r"one meta_\*\.json is not beside it"):
        load_checkpoint(str(renamed))
    (tmp_path / "d5" / "meta_001000.json").unlink()
    assert load_checkpoint(str(renamed)).block_size == SEQUENCE


def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    info = describe_checkpoint(str(nanochat(tmp_path / "d5", state_of(12, True, True))))
    assert info.readable and info.training == {"step": 3750, "val_bpb": 0.81}
    assert info.dtypes["bfloat16"] == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_kv_head": ...}, "model_config lacks n_kv_head"),
        ({"rope_theta": 1e4}, "model_config has rope_theta, which"),
        ({"n_head": 5}, "n_embd 64 over n_head 5 heads"),
        ({"sequence_len": "400"}, "sequence_len is '400'"),
        ({"window_pattern": "SSX"}, "window_pattern is 'SSX'"),
        ({"vocab_size": 200}, r"mis-shaped\s+transformer\.wte\.weight"),
        ({"n_layer": 6}, r"missing\s+transformer\.h\.5"),
    ],
)
def test_a_malformed_config_names_the_field(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = nanochat(tmp_path / "d5", state_of(12, True, True), **config)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("bigram_embed.weight", (4, 4), "a nanochat experiment, with bigram_embed"),
        ("value_embed_A.weight", (4, 4), "a nanochat experiment, with value_embed_A"),
        ("v0_lambdas", (5,), "a nanochat experiment, with v0_lambdas"),
        ("transformer.h.0.attn.ve_gate.weight", (2, 16), "gates of nanochat's value embeddings read 16 channels"),
    ],
)
def test_experiments_are_refused_by_name(tmp_path: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    path = nanochat(tmp_path / "d5", state_of(0, True, False) | {name: torch.zeros(shape)})
    with pytest.raises(UnknownCheckpointError, match=message):
        load_checkpoint(str(path))


def test_without_its_meta_json_it_says_what_is_missing(tmp_path: Path) -> None:
    path = nanochat(tmp_path / "d5", state_of(12, True, True))
    (tmp_path / "d5" / "meta_003750.json").write_text("{")
    with pytest.raises(CheckpointError, match="truncated or corrupt JSON"):
        load_checkpoint(str(path))
    (tmp_path / "d5" / "meta_003750.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta_003750\.json is not beside it"):
        load_checkpoint(str(path))


@pytest.mark.parametrize("beside", [True, False])
def test_its_tokenizer_is_found(tmp_path: Path, beside: bool) -> None:
    path = nanochat(tmp_path / "base_checkpoints" / "d5", state_of(12, True, True))
    folder = path.parent if beside else tmp_path / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(b"x")
    assert load_checkpoint(str(path)).tokenizer == folder / "tokenizer.pkl"
