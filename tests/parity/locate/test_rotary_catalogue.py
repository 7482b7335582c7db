"""Every fault of a Llama's and a nanochat's shape is caught, found in the right block, and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn as nn

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity.locate.search import find_wrong_step
from gptexport.precision import FLOAT32
from tests.support.fault_catalogue import KnownFault
from tests.support.faults import tampered
from tests.support.llama_builders import theirs
from tests.support.nanochat_builders import nanochat, state_of
from tests.support.rotary_catalogue import llama_catalogue, nanochat_catalogue

QUICK = {  # one of each sort; the others take minutes together
    "neighbours for halves",
    "normed after turning",
    "window one wider",
    "key heads in another order",
    "GELU for SiLU",
    "gain plus one",
    "softcap missing",
}


def marked(catalogue: list[KnownFault], quick: set[str]) -> list[Any]:
    return [
        pytest.param(known, id=known.what, marks=() if known.what in quick else pytest.mark.slow) for known in catalogue
    ]


@dataclass(frozen=True)
class Subject:
    """A right export, and ids longer than its windows."""

    model: nn.Module
    bundle: Path
    ids: np.ndarray


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("qwen3")
    windows = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    sizes = {"hidden_size": 48, "head_dim": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
    theirs("Qwen3", **sizes, **windows).save_pretrained(folder / "hf")
    return _subject(folder, folder / "hf", T=17, V=97)


@pytest.fixture(scope="module")
def of_nanochat(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("nanochat")
    return _subject(folder, nanochat(folder / "d5", state_of(12, True, True)), T=150, V=83)


def _subject(folder: Path, source: Path, *, T: int, V: int) -> Subject:
    checkpoint = load_checkpoint(str(source))
    bundle = export_onnx(checkpoint, folder / "gpt", graphs=["logits"]).path
    return Subject(checkpoint.model, bundle, np.random.default_rng(0).integers(0, V, (2, T)))


def check(subject: Subject, known: KnownFault, folder: Path) -> None:
    made = tampered(subject.bundle, folder / "wrong", known.fault)
    right = subject.bundle / "logits.onnx"
    _, wrong = find_wrong_step(subject.model, made / "logits.onnx", subject.ids, precision=FLOAT32, right=right)
    assert wrong is not None
    name = wrong.error.name
    assert name == known.block or name.startswith((f"{known.block}.", f"{known.block} ")), wrong.sentence()
    assert known.claim in (wrong.claim or ""), wrong.sentence()


@pytest.mark.parametrize("known", marked(llama_catalogue(), QUICK))
def test_a_fault_of_a_llama(known: KnownFault, llama: Subject, tmp_path: Path) -> None:
    check(llama, known, tmp_path)


@pytest.mark.parametrize("known", marked(nanochat_catalogue(), {"turned as Llama turns"}))
def test_a_fault_of_a_nanochat(known: KnownFault, of_nanochat: Subject, tmp_path: Path) -> None:
    check(of_nanochat, known, tmp_path)


def test_a_right_graph_has_no_wrong_step(llama: Subject, of_nanochat: Subject) -> None:
    for subject in (llama, of_nanochat):
        graph = subject.bundle / "logits.onnx"
        steps, wrong = find_wrong_step(subject.model, graph, subject.ids, precision=FLOAT32, right=graph)
        assert wrong is None and len(steps) > 40


def test_the_catalogues_are_large_enough() -> None:
    assert len(llama_catalogue()) >= 20 and len(nanochat_catalogue()) >= 15
