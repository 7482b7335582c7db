"""Options, hashes, places, memory: what all formats share."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.architectures.gpt2 import GPTConfig
from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError
from tests.support.builders import Builder, tiny_build_nanogpt, tiny_huggingface, tiny_nanogpt
from tests.support.nanogpt_reference import relative_rms

IDX = torch.tensor([[5, 0, 40, 31, 31, 7, 2]])


@pytest.mark.parametrize("tiny", [tiny_nanogpt, tiny_build_nanogpt, tiny_huggingface])
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_gelu_overrides(tmp_path: Path, tiny: Builder, gelu: str) -> None:
    path = str(tiny(tmp_path / "c"))
    plain, chosen = load_checkpoint(path), load_checkpoint(path, gelu=gelu)
    assert isinstance(chosen.config, GPTConfig) and isinstance(plain.config, GPTConfig)
    assert (chosen.config.gelu, chosen.assumed.get("gelu")) == (gelu, "option")
    assert chosen.config == replace(plain.config, gelu=gelu)
    assert torch.equal(plain.model(IDX), chosen.model(IDX)) == (plain.config.gelu == gelu)
    assert not any("GELU taken" in note for note in chosen.notes)
    overrides = plain.assumed.get("gelu") == "checkpoint" and gelu != plain.config.gelu
    assert any("overrides the checkpoint" in note for note in chosen.notes) == overrides


def test_an_assumed_gelu_is_told(tmp_path: Path) -> None:
    assert any("GELU taken as erf" in note for note in load_checkpoint(str(tiny_nanogpt(tmp_path / "c"))).notes)
    assert any(
        "GELU taken as tanh" in note for note in describe_checkpoint(str(tiny_build_nanogpt(tmp_path / "b"))).notes
    )
    assert load_checkpoint(str(tiny_huggingface(tmp_path / "h"))).notes == ()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tiny", [tiny_nanogpt, tiny_huggingface])
def test_vocab_size_keeps_the_first_logits(tmp_path: Path, tiny: Builder, tied: bool) -> None:
    path = str(tiny(tmp_path / "c", **{"tie_word_embeddings" if tiny is tiny_huggingface else "tied": tied}))
    whole, cut = load_checkpoint(path), load_checkpoint(path, vocab_size=50)
    assert relative_rms(cut.model(IDX), whole.model(IDX)[..., :50]) <= 1e-6
    assert cut.model(IDX).shape == (1, 7, 50)
    assert isinstance(cut.config, GPTConfig)
    assert (cut.vocab_size, cut.config.vocab_size, cut.config.tied) == (50, 50, tied)
    assert cut.sha256 == whole.sha256, "the hash is the file's"


def test_block_size_can_shrink(tmp_path: Path) -> None:
    path = str(tiny_nanogpt(tmp_path / "c"))
    cut = load_checkpoint(path, block_size=7)
    assert isinstance(cut.config, GPTConfig) and (cut.block_size, cut.config.block_size) == (7, 7)
    assert cut.model.state_dict()["transformer.wpe.weight"].shape == (7, 30)
    assert torch.equal(cut.model(IDX), load_checkpoint(path).model(IDX))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 98}, "vocab_size 98 is more than the checkpoint has, 97"),
        ({"vocab_size": 0}, "vocab_size is 0; expected a positive integer"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"block_size": 18}, "block_size 18 is more than the checkpoint has, 17"),
        ({"block_size": -1}, "block_size is -1"),
        ({"gelu": "relu"}, "gelu is 'relu'; expected one of tanh, erf"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tiny_nanogpt(tmp_path / "c")), **options)


@pytest.mark.parametrize(
    ("rows", "padded"), [(50304, True), (50257, False), (50260, False), (51200, False), (97, False)]
)
def test_a_padded_vocabulary_is_told(tmp_path: Path, rows: int, padded: bool) -> None:
    path = str(tiny_nanogpt(tmp_path / "c", vocab_size=rows, n_layer=1, n_embd=6))
    assert any("--vocab-size 50257" in note for note in load_checkpoint(path).notes) == padded
    assert any("--vocab-size 50257" in note for note in describe_checkpoint(path).notes) == padded
    if padded:
        assert not any("padded" in note for note in load_checkpoint(path, vocab_size=50257).notes)


def test_sha256_is_that_of_the_file_or_of_all_files(tmp_path: Path) -> None:
    path = tiny_nanogpt(tmp_path / "c")
    assert load_checkpoint(str(path)).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    hf = tiny_huggingface(tmp_path / "h", sharded=True)
    names = sorted([*(p.name for p in hf.glob("*.safetensors")), "config.json", "model.safetensors.index.json"])
    lines = "".join(f"{name} {hashlib.sha256((hf / name).read_bytes()).hexdigest()}\n" for name in names)
    assert load_checkpoint(str(hf)).sha256 == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("source", ["no/such/ckpt.pt", "ckpt.pt", "./gone", "/gone/for/good", "out/ckpt.pt", "gone.py"])
def test_a_path_that_is_not_there(source: str) -> None:
    """It is said at once, without asking the hub."""
    with pytest.raises(CheckpointError, match=f"{re.escape(source)}: no such file or folder") as raised:
        load_checkpoint(source)
    assert "Hugging Face cache" not in str(raised.value)


def test_a_missing_file_in_a_folder_that_is_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out/gpt2: no such file or folder") as raised:
        load_checkpoint("out/gpt2")
    assert "Hugging Face cache" not in str(raised.value)


def test_a_folder_named_gpt2_hints_at_the_hub() -> None:
    with pytest.raises(CheckpointError, match=r"named in full: openai-community/gpt2"):
        load_checkpoint("gpt2")


MEMORY = """
import re, sys
import torch
from gptexport.checkpoints import describe_checkpoint, load_checkpoint

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024

load_checkpoint(sys.argv[1])  # whatever is imported and allocated once
before = anonymous()
checkpoints = [load_checkpoint(source, **{"vocab_size": 90}) for source in sys.argv[2:]]
infos = [describe_checkpoint(source) for source in sys.argv[2:]]
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_float32_weights_stay_mapped(tmp_path: Path) -> None:
    """Loading copies no weight, transposed and cut ones included: the process grows by far less than the files."""
    sizes: dict[str, Any] = {"n_embd": 480, "n_layer": 3}
    big = [
        tiny_nanogpt(tmp_path / "n", **sizes),
        tiny_build_nanogpt(tmp_path / "b", tied=False, **sizes),
        tiny_huggingface(tmp_path / "h", **sizes),
        tiny_huggingface(tmp_path / "i", safetensors=False, **sizes),
    ]
    assert big[0].stat().st_size > 30e6
    command = [sys.executable, "-c", MEMORY, str(tiny_nanogpt(tmp_path / "small")), *map(str, big)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 8e6, f"{grown / 1e6:.1f} MB"


class TestHub:
    """A hub id is looked up only where no such path exists."""

    def test_what_is_cached_is_not_fetched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = pytest.importorskip("huggingface_hub")
        calls = []

        def snapshot(repo_id: str, **options: object) -> str:
            calls.append((repo_id, options["local_files_only"]))
            return str(tmp_path / "hf")

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        (tiny_huggingface(tmp_path / "hf") / "tokenizer.json").write_text("{}")
        assert load_checkpoint("owner/name").format == "huggingface"
        assert calls == [("owner/name", True)]

    @pytest.mark.parametrize("reachable", [True, False])
    def test_weights_that_are_cached_without_a_tokenizer_get_theirs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
    ) -> None:
        """Whoever cached them may not have asked for it. Without a network they are the model all the same."""
        hub = pytest.importorskip("huggingface_hub")
        repo = tiny_huggingface(tmp_path / "hf")
        asked = []

        def snapshot(_: str, **options: Any) -> str:
            if not options["local_files_only"]:
                asked.append(options["allow_patterns"])
                if not reachable:
                    raise ConnectionError("no route")
                (repo / "vocab.json").write_text("{}")
            return str(repo)

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        assert load_checkpoint("owner/name").tokenizer == (repo / "vocab.json" if reachable else None)
        (patterns,) = asked
        assert {"vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json", "generation_config.json"} <= {
            *patterns
        }
        assert not any("safetensors" in pattern or pattern.endswith(".bin") for pattern in patterns)

    @pytest.mark.parametrize("safetensors", [True, False])
    def test_what_is_not_cached_is_fetched_and_no_more_than_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safetensors: bool
    ) -> None:
        hub = pytest.importorskip("huggingface_hub")
        repo = tiny_huggingface(tmp_path / "hf", safetensors=safetensors)
        (tmp_path / "only-config").mkdir()
        (tmp_path / "only-config" / "config.json").write_bytes((repo / "config.json").read_bytes())
        asked = []

        def snapshot(repo_id: str, **options: Any) -> str:
            if options["local_files_only"]:
                raise hub.errors.LocalEntryNotFoundError("not cached")
            asked.append(options["allow_patterns"])
            has = any(pattern.endswith(".safetensors") for pattern in options["allow_patterns"]) == safetensors
            return str(repo if has else tmp_path / "only-config")

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        assert load_checkpoint("owner/name").format == "huggingface"
        assert len(asked) == (1 if safetensors else 2)
        assert "pytorch_model*.bin" not in asked[0]

    def test_a_partly_cached_model_is_fetched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = pytest.importorskip("huggingface_hub")
        whole, part = tiny_huggingface(tmp_path / "w", sharded=True), tiny_huggingface(tmp_path / "p", sharded=True)
        sorted(part.glob("*.safetensors"))[2].unlink()
        monkeypatch.setattr(
            hub, "snapshot_download", lambda _, **options: str(part if options["local_files_only"] else whole)
        )
        assert load_checkpoint("owner/name").format == "huggingface"

    def test_neither_cached_nor_reachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = pytest.importorskip("huggingface_hub")

        def snapshot(_: str, **options: object) -> str:
            raise hub.errors.LocalEntryNotFoundError("no network")

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        with pytest.raises(CheckpointError, match=r"owner/name: no such file or folder, and no model of that name"):
            load_checkpoint("owner/name")

    def test_without_huggingface_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(CheckpointError, match=r"pip install 'gptexport\[hf\]'"):
            load_checkpoint("owner/name")

    def test_a_path_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner" / "name").mkdir(parents=True)
        with pytest.raises(UnknownCheckpointError, match="a folder without anything in it"):
            load_checkpoint("owner/name")


def test_only_what_a_checkpoint_leaves_open_can_be_chosen(tmp_path: Path) -> None:
    path = str(tiny_nanogpt(tmp_path / "ckpt.pt"))
    with pytest.raises(
        CheckpointError, match="n_head is 3, but this checkpoint does not leave it open: it says n_head 3"
    ):
        load_checkpoint(path, n_head=3)
    with pytest.raises(CheckpointError, match=r"softcap is 20.0, .*: its architecture has none"):
        load_checkpoint(path, softcap=20.0)
    with pytest.raises(CheckpointError, match=r"softcap is 16.0; expected one of 15, 20"):
        load_checkpoint(path, softcap=16.0)
