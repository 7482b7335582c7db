"""A user's own module.py:factory."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptexport.architectures.module import ModuleConfig
from gptexport.checkpoints import Checkpoint, describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError

HEAD = """
import torch
from torch import nn


class Tiny(nn.Module):
    block_size = 16

    def __init__(self, V=11, C=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.wte = nn.Embedding(V, C)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(C, V)

    def logits(self, idx):
        return self.head(self.drop(self.wte(idx)))

    def forward(self, idx):
        return self.logits(idx)

"""
IDX = torch.tensor([[5, 0, 10, 3], [1, 2, 3, 4]])


def write(tmp_path: Path, body: str = "", name: str = "mine.py") -> Path:
    path = tmp_path / name
    path.write_text(HEAD + body)
    return path


def load(tmp_path: Path, body: str = "", what: str = "Tiny", **options: Any) -> Checkpoint:
    return load_checkpoint(f"{write(tmp_path, body)}:{what}", **options)


def returning(expression: str) -> str:
    """A module whose forward returns that."""
    return (
        f"class Mine(Tiny):\n    def forward(self, idx):\n        x = self.logits(idx)\n        return {expression}\n"
    )


MAKERS = [
    ("", "Tiny"),
    ("def factory():\n    return Tiny()\n", "factory"),
    ("model = Tiny()\n", "model"),
    ("factory = lambda: Tiny()\n", "factory"),
    ("model = torch.compile(Tiny())\n", "model"),
]


@pytest.mark.parametrize(("body", "what"), MAKERS)
def test_a_class_a_function_or_an_instance(tmp_path: Path, body: str, what: str) -> None:
    checkpoint = load(tmp_path, body, what)
    expected = load(tmp_path).model(IDX)
    assert torch.equal(checkpoint.model(IDX), expected), "and dropout is off"
    assert (checkpoint.format, checkpoint.assumed) == ("module", {})
    assert checkpoint.config == ModuleConfig(block_size=16, vocab_size=11)
    assert (checkpoint.block_size, checkpoint.vocab_size) == (16, 11)
    assert not any(m.training for m in checkpoint.model.modules())
    assert not any(p.requires_grad for p in checkpoint.model.parameters())
    assert not any("_orig_mod" in name for name in checkpoint.model.state_dict()), "what torch.compile wrapped"


OUTPUTS = [
    "(x, None)",
    "(None, x)",
    "(x.mean(), x)",
    "[x, torch.zeros(3)]",
    "{'logits': x, 'loss': None}",
    "{'loss': x.mean(), 'out': x}",
    "__import__('types').SimpleNamespace(logits=x, loss=None)",
    "(x, self.wte(idx))",
]


@pytest.mark.parametrize("expression", OUTPUTS)
def test_logits_are_found_in_what_forward_returns(tmp_path: Path, expression: str) -> None:
    """Where two tensors could be the logits, the config's vocab_size decides."""
    body = returning(expression) + "def make():\n    m = Mine()\n    m.config = {'vocab_size': 11}\n    return m\n"
    assert torch.equal(load(tmp_path, body, "make").model(IDX), load(tmp_path).model(IDX))


SIZES = [
    ("config = __import__('types').SimpleNamespace(block_size=7)", 7),
    ("config = {'max_seq_len': 9}", 9),
    ("n_positions = 5", 5),
    ("context_length = 4\n    config = {'n_ctx': 6}", 6),
    ("block_size = None\n    sequence_len = 2", 2),
    ("max_position_embeddings = 1", 1),
]


@pytest.mark.parametrize(("attribute", "expected"), SIZES)
def test_block_size_is_found(tmp_path: Path, attribute: str, expected: int) -> None:
    body = f"class Mine(Tiny):\n    block_size = None\n    {attribute}\n"
    assert load(tmp_path, body, "Mine").block_size == expected
    assert load(tmp_path, body, "Mine", block_size=3).block_size == 3


def test_block_size_nowhere_tells_the_names_tried(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"neither Mine nor its config has one of block_size, n_positions, .*sequence_len"
    ):
        load(tmp_path, "class Mine(Tiny):\n    block_size = None\n", "Mine")


def test_vocab_size_slices_the_logits(tmp_path: Path) -> None:
    cut = load(tmp_path, vocab_size=6)
    assert cut.vocab_size == 6
    assert torch.equal(cut.model(IDX), load(tmp_path).model(IDX)[..., :6])
    with pytest.raises(CheckpointError, match="--vocab-size 12 is more than the logits have, 11"):
        load(tmp_path, vocab_size=12)


def test_gelu_is_not_for_modules(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gelu is for checkpoints whose model"):
        load_checkpoint(f"{write(tmp_path)}:Tiny", gelu="erf")


def test_forward_only_ever_runs_in_eval_mode(tmp_path: Path) -> None:
    body = "class Mine(Tiny):\n    def forward(self, idx):\n        assert not self.training\n"
    body += "        return self.logits(idx)\n"
    assert load(tmp_path, body, "Mine").vocab_size == 11


def test_half_precision_modules_are_cast(tmp_path: Path) -> None:
    checkpoint = load(tmp_path, "model = Tiny().half()\n", "model")
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert any("float16" in note for note in checkpoint.notes)


@pytest.mark.parametrize("expression", ["x[:, -1:, :]", "x[:, -1, :]", "(x[:, [-1], :], None)", "{'logits': x[:, -1]}"])
def test_a_forward_of_the_last_position_only_is_refused_with_the_reason(tmp_path: Path, expression: str) -> None:
    with pytest.raises(CheckpointError, match=r"last position only.*all positions, \(B,T,V\).*passes targets"):
        load(tmp_path, returning(expression), "Mine")


REFUSED_OUTPUTS = [
    ("x.argmax(-1)", r"int64 \(2, 5\)"),
    ("x.transpose(0, 1)", r"float32 \(5, 2, 11\)"),
    ("x.argmax(-1, keepdim=True)", r"int64 \(2, 5, 1\)"),
    ("None", "returned NoneType"),
    ("(None, 3)", r"returned \(NoneType, int\), in which nothing is the logits"),
    ("(x, x + 1)", "several tensors could be the logits"),
    ("x.mean(-1)", r"one number for each position: \(2, 5\) for ids \(2, 5\).*averaged"),
    ("x[..., :int(idx.shape[0])]", "2 logits at one shape and 1 at another"),
]


@pytest.mark.parametrize(("expression", "message"), REFUSED_OUTPUTS)
def test_other_outputs_are_refused(tmp_path: Path, expression: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, returning(expression), "Mine")


SIGNATURES = [
    ("def forward(self, idx, targets): return self.logits(idx)", "forward needs targets after idx"),
    ("def forward(self, idx, *, mask): return self.logits(idx)", "forward needs mask after idx"),
    ("def forward(self): return 1", "forward takes no positional argument"),
]


@pytest.mark.parametrize(("method", "message"), SIGNATURES)
def test_a_forward_that_needs_more_is_refused(tmp_path: Path, method: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, f"class Mine(Tiny):\n    {method}\n", "Mine")


@pytest.mark.parametrize("method", ["forward(self, idx, targets=None)", "forward(self, *args, **kwargs)"])
def test_optional_arguments_are_fine(tmp_path: Path, method: str) -> None:
    first = "args[0]" if "args" in method else "idx"
    body = f"class Mine(Tiny):\n    def {method}: return self.logits({first})\n"
    assert load(tmp_path, body, "Mine").vocab_size == 11


LINE = HEAD.count("\n") + 1
USER_ERRORS = [
    ("1 / 0\n", f"raised ZeroDivisionError: division by zero\n  at .*mine.py:{LINE}"),
    ("def f():\n    return {}['gone']\n", f"raised KeyError: 'gone'\n  at .*mine.py:{LINE + 1}, in f"),
    ("def f(:\n", f"raised SyntaxError.*\n  at .*mine.py:{LINE}"),
    ("import no_such_package\n", f"raised ModuleNotFoundError.*no_such_package.*\n  at .*mine.py:{LINE}"),
    ("raise SystemExit(3)\n", f"raised SystemExit: 3\n  at .*mine.py:{LINE}"),
    (
        "class f(Tiny):\n    def forward(self, idx):\n        return self.gone(idx)\n",
        f"AttributeError.*\n  at .*:{LINE + 2}",
    ),
    (
        "class f(Tiny):\n    def forward(self, idx):\n        return self.head(idx)\n",
        f"RuntimeError.*\n  at .*:{LINE + 2}",
    ),
]


@pytest.mark.parametrize(("body", "message"), USER_ERRORS)
def test_errors_in_the_users_code_tell_their_line(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(tmp_path, body, "f")
    assert "your code raised" in str(raised.value)


NAMES = [
    ("gone", r"mine.py has no 'gone'; it has Tiny"),
    ("not-a-name", "is not a name in the file"),
    ("", "is not a name in the file"),
    ("number", "number is a int; expected a torch.nn.Module"),
    ("text", "gives a str; expected a torch.nn.Module"),
    ("needs", "needs needs path, size; it is called without arguments"),
]


@pytest.mark.parametrize(("what", "message"), NAMES)
def test_names_that_make_no_module(tmp_path: Path, what: str, message: str) -> None:
    body = "number = 3\ndef text():\n    return 'x'\ndef needs(path, *, size, more=1):\n    pass\n"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, body, what)


def test_a_file_that_is_not_there() -> None:
    for call in (load_checkpoint, describe_checkpoint):
        with pytest.raises(CheckpointError, match=r"no such file: gone\.py"):
            call("gone.py:factory")


def test_its_folder_is_importable_and_only_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "sibling_of_mine.py").write_text("SIZE = 13\n")
    before = list(sys.path)
    body = "from sibling_of_mine import SIZE\ndef make():\n    import sibling_of_mine as s\n    return Tiny(V=s.SIZE)\n"
    assert load(tmp_path, body, "make").vocab_size == 13
    assert sys.path == before


def test_the_hash_is_of_the_file_and_the_weights(tmp_path: Path) -> None:
    plain = load(tmp_path).sha256
    assert load(tmp_path).sha256 == plain
    assert load(tmp_path, "# a comment\n").sha256 != plain
    weights = "import os\nmodel = Tiny(seed=int(os.environ['TINY_SEED']))\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_SEED", "1")
        one = load(tmp_path, weights, "model").sha256
        patch.setenv("TINY_SEED", "2")
        assert load(tmp_path, weights, "model").sha256 != one


def test_inspect_does_not_import_it(tmp_path: Path) -> None:
    path = write(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\ndef factory(): return Tiny()\n")
    info = describe_checkpoint(f"{path}:factory")
    assert (info.format, info.readable, info.files) == ("module", True, ("mine.py",))
    assert "not imported" in info.description
    unknown = describe_checkpoint(f"{path}:other")
    assert not unknown.readable and "no 'other'" in unknown.problems[0] and "Tiny, factory" in unknown.notes[0]
    assert not (tmp_path / "ran").exists()


def test_a_model_of_transformers_loads_as_a_module(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "hf_model.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=19, n_positions=12)\n"
        "def make():\n    return GPT2LMHeadModel(config)\n"
    )
    checkpoint = load_checkpoint(f"{tmp_path / 'hf_model.py'}:make")
    assert (checkpoint.block_size, checkpoint.vocab_size) == (12, 19)
    assert checkpoint.model(IDX).shape == (2, 4, 19)
