"""`--layout genai`: a bundle beside whose graphs lies one for onnxruntime-genai. Here its loop is written out;
onnxruntime-genai itself runs where it is installed, and over 50 prompts in scripts/check_genai.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import gptexport_runtime
from gptexport.architectures.module import ModuleConfig
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx, genai
from gptexport.tokenizers import tokenizer_to_bundle
from scripts.check_genai import GenAI
from tests.checkpoints.test_huggingface_llama import CASES, folder
from tests.support.builders import own, tiny_nanogpt
from tests.support.cli import Cli
from tests.support.nanochat_builders import GENERATIONS, nanochat, state_of

PROMPTS = [[5, 60, 2, 33], [82, 7], [11], [40, 40, 3]]
NEW = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("genai")
    export_onnx(load_checkpoint(str(tiny_nanogpt(home / "ckpt.pt"))), home / "gpt", target="cpu", layout="genai")
    return home / "gpt"


def llama(tmp_path: Path, case: str) -> Checkpoint:
    kind, config = CASES[case]
    folder(tmp_path / "theirs", kind, **config)
    return load_checkpoint(str(tmp_path / "theirs"))


def config_of(bundle: Path) -> Any:
    return json.loads((bundle / "genai_config.json").read_text())


def generated(bundle: Path, rows: list[list[int]], count: int) -> list[list[int]]:
    """Greedily, as onnxruntime-genai calls the graph: padded on the right with an id that is none, positions of padding
    0, a mask of all tokens so far in which padding stays 0, past and present one buffer."""
    model = config_of(bundle)["model"]
    session = ort.InferenceSession(str(bundle / model["decoder"]["filename"]), providers=["CPUExecutionProvider"])
    B, T, S = len(rows), max(map(len, rows)), max(map(len, rows)) + count
    ids = np.array([row + [model["pad_token_id"]] * (T - len(row)) for row in rows])
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(T) < lengths[:, None]).astype(np.int64)
    positions = np.where(mask, np.arange(T), 0)
    shape = (B, model["decoder"]["num_key_value_heads"], S, model["decoder"]["head_size"])
    layers = range(model["decoder"]["num_hidden_layers"])
    names = [
        model["decoder"]["inputs"][kind] % layer for layer in layers for kind in ("past_key_names", "past_value_names")
    ]
    cache = {name: np.zeros(shape, np.float32) for name in names}
    new: list[list[int]] = [[] for _ in rows]
    for _ in range(count):
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        logits, *present = session.run(None, given)
        assert logits.shape == (B, 1, model["vocab_size"])
        cache = dict(zip(names, present, strict=True))
        ids = logits[:, 0].argmax(axis=1)[:, None]
        for row, i in zip(new, ids[:, 0].tolist(), strict=True):
            row.append(i)
        positions = mask.sum(axis=1, keepdims=True)
        mask = np.concatenate([mask, np.ones((B, 1), np.int64)], axis=1)
    return new


def of_nanochat(tmp_path: Path) -> Checkpoint:
    channels, lambdas, smear, _ = GENERATIONS["2026-03-14"]
    return load_checkpoint(str(nanochat(tmp_path / "d5", state_of(channels, lambdas, smear))))


@pytest.mark.parametrize(
    ("case", "target"),
    [
        ("GPT-2", "portable"),
        pytest.param("Llama", "cpu", marks=pytest.mark.slow),
        pytest.param("Mistral with a window", "portable", marks=pytest.mark.slow),
        pytest.param("nanochat", "cpu", marks=pytest.mark.slow),
    ],
)
def test_the_tokens_are_the_session_s(tmp_path: Path, case: str, target: str) -> None:
    """nanochat's tokens keep something of the one before: a layer of cache that is none of attention's."""
    if case == "nanochat":
        loaded = of_nanochat(tmp_path)
    else:
        loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt"))) if case == "GPT-2" else llama(tmp_path, case)
    export_onnx(loaded, tmp_path / "gpt", target=target, layout="genai", graphs=["decode"])
    session = gptexport_runtime.load(tmp_path / "gpt")
    expected = [list(row) for row in session.generate(PROMPTS, max_new_tokens=NEW, temperature=0, stop=())]
    assert generated(tmp_path / "gpt", PROMPTS, NEW) == expected
    assert [generated(tmp_path / "gpt", [prompt], NEW)[0] for prompt in PROMPTS] == expected


def test_onnxruntime_genai_itself(bundle: Path) -> None:
    """Rows of unequal lengths, which it pads, and a prompt that comes in two pieces."""
    genai_package = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    session = gptexport_runtime.load(bundle)
    expected = [list(row) for row in session.generate(PROMPTS, max_new_tokens=NEW, temperature=0)]
    assert GenAI(bundle).generate(PROMPTS, NEW) == expected
    model = genai_package.Model(str(bundle))
    asked = genai_package.GeneratorParams(model)
    asked.set_search_options(max_length=len(PROMPTS[0]) + NEW)
    generator = genai_package.Generator(model, asked)
    for piece in (PROMPTS[0][:3], PROMPTS[0][3:]):
        generator.append_tokens(np.array(piece, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist()[len(PROMPTS[0]) :] == expected[0]


def test_it_is_a_bundle(bundle: Path) -> None:
    """The graph reads the bundle's weights, and the manifest has no part of it."""
    manifest = json.loads((bundle / "gptexport.json").read_text())
    assert list(manifest["graphs"]) == ["logits", "last", "score", "decode"]
    graph = onnx.load(str(bundle / "genai.onnx"), load_external_data=False).graph
    places = {entry.value for weight in graph.initializer for entry in weight.external_data if entry.key == "location"}
    assert places == {"weights.data"}
    assert gptexport_runtime.load(bundle, verify=True).logits([[1, 2]]).shape == (1, 2, 97)


def test_a_model_without_an_end_gets_an_id_that_is_never_chosen(bundle: Path) -> None:
    """onnxruntime-genai refuses a config that names no id of the vocabulary to end a text at."""
    model = config_of(bundle)["model"]
    assert (model["vocab_size"], model["eos_token_id"], model["pad_token_id"]) == (98, [97], -1)
    session = ort.InferenceSession(str(bundle / "genai.onnx"), providers=["CPUExecutionProvider"])
    given = {"input_ids": [[1]], "attention_mask": [[1]], "position_ids": [[0]]}
    cache = {value.name: np.zeros((1, 3, 2, 10), np.float32) for value in session.get_inputs()[3:]}
    logits = session.run(["logits"], {**{name: np.array(value) for name, value in given.items()}, **cache})[0]
    assert np.isneginf(logits[0, 0, 97]) and np.isfinite(logits[0, 0, :97]).all()


def test_padding_is_a_session_s(bundle: Path) -> None:
    """int8 rounds all rows together, so that what a row is padded with is felt by the others."""
    session = ort.InferenceSession(str(bundle / "genai.onnx"), providers=["CPUExecutionProvider"])
    cache = {value.name: np.zeros((1, 3, 4, 10), np.float32) for value in session.get_inputs()[3:]}
    found = []
    for padding in (-1, 0):
        given = {"input_ids": [[5, padding]], "attention_mask": [[1, 0]], "position_ids": [[0, 0]]}
        found.append(session.run(None, {**{name: np.array(value) for name, value in given.items()}, **cache}))
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_the_checkpoint_s_end_is_the_config_s(tmp_path: Path) -> None:
    export_onnx(llama(tmp_path, "Llama"), tmp_path / "gpt", layout="genai", graphs=["decode"])
    model = config_of(tmp_path / "gpt")["model"]
    assert (model["vocab_size"], model["bos_token_id"], model["eos_token_id"]) == (97, 1, [2])
    assert model["context_length"] == config_of(tmp_path / "gpt")["search"]["max_length"] == 64


def test_an_id_that_cannot_go_in_ends_a_text(tmp_path: Path) -> None:
    """A head with more rows than the embedding: as a session's, a text ends at what is no input."""

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.wte, self.qkv, self.head = torch.nn.Embedding(29, 8), torch.nn.Linear(8, 24), torch.nn.Linear(8, 31)

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(self.wte(idx))[:, None].chunk(3, dim=-1)
            return self.head(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])

    checkpoint = replace(own(Tiny(), block_size=8, vocab_size=31), input_vocab_size=29)
    config = ModuleConfig(block_size=8, vocab_size=31, input_vocab_size=29)
    export_onnx(replace(checkpoint, config=config), tmp_path / "gpt", layout="genai")
    assert config_of(tmp_path / "gpt")["model"]["eos_token_id"] == [29, 30]


def test_the_tokenizer_lies_beside_it(tmp_path: Path) -> None:
    """As transformers reads it too; what a bundle has already is not written again."""
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=300)))
    words = tokenizer_to_bundle("bytes")
    export_onnx(loaded, tmp_path / "gpt", layout="genai", graphs=["decode"], tokenizer=words)
    assert len(json.loads((tmp_path / "gpt/tokenizer.json").read_text())["model"]["vocab"]) == 256
    assert json.loads((tmp_path / "gpt/tokenizer_config.json").read_text())["model_max_length"] == loaded.block_size


@pytest.mark.slow
def test_a_plain_bundle_in_its_place_leaves_nothing_of_it(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    export_onnx(loaded, tmp_path / "gpt", layout="genai", graphs=["decode"])
    export_onnx(loaded, tmp_path / "gpt", graphs=["logits"], force=True)
    assert {path.name for path in (tmp_path / "gpt").iterdir()} == {"gptexport.json", "logits.onnx", "weights.data"}


@pytest.mark.parametrize("wrong", ["Sub", "ReduceSum"])
def test_a_wrong_graph_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """It is run beside `decode` before anyone sees it."""
    made = genai.behind_masks

    def broken(model: Any, *, one_more: bool) -> Any:
        graph = made(model, one_more=one_more).graph
        node = next(node for node in graph if node.op_type == wrong)
        node.op_type = {"Sub": "Max", "ReduceSum": "ReduceMax"}[wrong]
        return model

    monkeypatch.setattr(genai, "behind_masks", broken)
    with pytest.raises(ExportError, match=r"genai.onnx (differs|does not run)"):
        export_onnx(load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt"))), tmp_path / "gpt", layout="genai")
    assert not (tmp_path / "gpt").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--graphs", "last"], "without the graph decode"),
        (["--target", "cuda", "--dtype", "bfloat16"], "no CPU runs"),
        (["-o", "gpt.onnx"], "Name a folder"),
    ],
)
def test_refusals(cli: Cli, tmp_path: Path, asked: list[str], said: str) -> None:
    """Before the checkpoint, which is not there, is looked for."""
    ran = cli("onnx", tmp_path / "none.pt", "-o", tmp_path / "gpt", "--layout", "genai", *asked)
    assert ran.code in (1, 2) and said in ran.err


def test_a_forward_without_a_cache_is_refused(tmp_path: Path) -> None:
    """What keeps `decode` out of a bundle is the reason."""

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7)

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return self.head(self.wte(idx).cumsum(dim=1))

    with pytest.raises(ExportError, match="layout genai needs the graph decode, which this model does not allow: "):
        export_onnx(own(Mean(), block_size=8, vocab_size=7), tmp_path / "gpt", layout="genai")
    assert not (tmp_path / "gpt").exists()
