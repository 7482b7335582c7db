"""A user's module as its factory gave it is the reference: what loading does to it must not change what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

from gptexport import casting
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.checkpoints.formats import as_it_came, forward, module
from gptexport.errors import CheckpointError
from gptexport.export import export_onnx
from gptexport_runtime import InputError, load

HEAD = """
import torch, torch.nn as nn, torch.nn.functional as F
V, C, H, T_MAX = 31, 16, 2, 12

class Tiny(nn.Module):
    block_size = T_MAX

    def __init__(self, ids=V, logits=V):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(ids, C), nn.Embedding(T_MAX, C)
        self.qkv, self.proj, self.ln = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.LayerNorm(C)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(C, logits)

    def positions(self, idx):
        return self.wpe(torch.arange(idx.shape[1]))

    def heads(self, x):
        B, T, _ = x.shape
        return [y.view(B, T, H, C // H).transpose(1, 2) for y in self.qkv(x).split(C, -1)]

    def attend(self, x):
        return F.scaled_dot_product_attention(*self.heads(x), is_causal=True)

    def trunk(self, idx):
        x = self.drop(self.wte(idx) + self.positions(idx))
        return self.ln(x + self.proj(self.attend(x).transpose(1, 2).flatten(2)))

    def forward(self, idx):
        return self.head(self.trunk(idx))

def rotation():
    angle = torch.outer(torch.arange(T_MAX).float(), 10000.0 ** (-torch.arange(0, C // H, 2).float() / (C // H)))
    return torch.polar(torch.ones_like(angle), angle)

class Rotary(Tiny):
    def __init__(self):
        super().__init__()
        self.register_buffer("freqs_cis", rotation())

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.freqs_cis[: x.shape[2]]).flatten(-2).to(x.dtype)

    def attend(self, x):
        q, k, v = self.heads(x)
        return F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)

class Grows(Tiny):
    \"\"\"Keeps a mask of the longest T that it has seen, as many rotary tables are kept.\"\"\"

    seen = 0

    def attend(self, x):
        T = x.shape[1]
        if T > self.seen:
            self.seen, self.mask = T, torch.ones(T, T, dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(*self.heads(x), attn_mask=self.mask[:T, :T])

class Doubled(Tiny):
    \"\"\"Positions from a float64 table, whose steps float32 does not have.\"\"\"

    def __init__(self):
        super().__init__()
        self.register_buffer("table", 1 + 1e-9 * torch.arange(T_MAX, dtype=torch.float64), persistent=False)

    def positions(self, idx):
        return ((self.table[: idx.shape[1]] - 1) * 1e8).to(self.wpe.weight.dtype)[:, None].expand(-1, C)

def ids_of(model):
    return torch.randint(0, V, (2, T_MAX), generator=torch.Generator().manual_seed(1))
"""
IDS = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(1))


def source(folder: Path, body: str = "", name: str = "make") -> str:
    (folder / "mine.py").write_text(HEAD + body)
    return f"{folder / 'mine.py'}:{name}"


def made(folder: Path, body: str = "", name: str = "make") -> nn.Module:
    """The user's own, outside gptexport."""
    namespace: dict[str, Callable[[], nn.Module]] = {}
    exec(HEAD + body, namespace)
    return namespace[name]().eval()


def expected(folder: Path, body: str = "", name: str = "make") -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = made(folder, body, name)(IDS)
    return logits


SAME = [  # what a factory may give, and which it is in the end
    ("Rotary", "make = Rotary"),
    ("Doubled", "make = Doubled"),
    ("Grows", "make = Grows"),
    ("Tiny", "make = Tiny().train()"),
    ("Tiny", "make = torch.compile(Tiny())"),
    ("Tiny", "make = Tiny()\nmake.compile()"),
    ("Tiny", "make = Tiny()\nmake.proj = torch.compile(make.proj)"),
    ("Tiny", "make = nn.DataParallel(Tiny())"),
    ("Tiny", "make = nn.DataParallel(torch.compile(Tiny()))"),
    ("Tiny", "make = torch.optim.swa_utils.AveragedModel(Tiny())\nmake.block_size = T_MAX"),
]


@pytest.mark.parametrize(("name", "body"), SAME, ids=[body for _, body in SAME])
def test_what_is_loaded_is_what_came(tmp_path: Path, name: str, body: str) -> None:
    checkpoint = load_checkpoint(source(tmp_path, body))
    assert torch.equal(checkpoint.model(IDS), expected(tmp_path, name=name))
    assert not any("_orig_mod" in part or "OptimizedModule" in part for part, _ in checkpoint.model.named_modules())
    assert all(part._compiled_call_impl is None for part in checkpoint.model.modules())


@pytest.mark.parametrize("name", ["Rotary", "Doubled", "Grows"])
def test_what_is_exported_is_what_came(tmp_path: Path, name: str) -> None:
    export_onnx(load_checkpoint(source(tmp_path, name=name)), tmp_path / "out")
    with load(tmp_path / "out", "cpu") as session:
        actual = session.logits(IDS.numpy())
    np.testing.assert_allclose(actual, expected(tmp_path, name=name).numpy(), rtol=1e-4, atol=1e-5)


HALVES = [("Tiny", "bfloat16"), ("Tiny", "float16"), ("Rotary", "bfloat16"), ("Doubled", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_a_16_bit_module_keeps_its_tables(tmp_path: Path, name: str, dtype: str) -> None:
    body = f"make = {name}()\nfor p in make.parameters(): p.data = p.data.to(torch.{dtype})"
    checkpoint = load_checkpoint(source(tmp_path, body))
    widened = made(
        tmp_path, f"{body}\nfor p in make.parameters(): p.data = p.data.float()\nmaker = lambda: make", "maker"
    )
    with torch.no_grad():
        assert torch.equal(checkpoint.model(IDS), widened(IDS))
    assert any(f"weights were {dtype}, cast to float32" in note for note in checkpoint.notes)


def test_a_16_bit_module_that_only_runs_in_float32_is_said_to(tmp_path: Path) -> None:
    body = "make = Tiny()\nmake.head.half()"
    checkpoint = load_checkpoint(source(tmp_path, body))
    assert any("does not run as it came" in note and "dtype" in note for note in checkpoint.notes)
    assert checkpoint.model(IDS).dtype == torch.float32


COUNTS = """
class make(Tiny):
    n = 0
    def forward(self, idx):
        self.n += 1
        return super().forward(idx) * self.n
"""
REFUSED = [
    ("class make(Tiny):\n    block_size = 40", "block_size is 40, and forward does not run at T = 40: IndexError"),
    ("class make(Tiny):\n    block_size = 40", "It runs up to T = 12: pass block_size 12"),
    (
        "class make(Tiny):\n    block_size = 40\n    def trunk(self, idx): return super().trunk(idx[:, -T_MAX:])",
        r"cuts its ids to 12.*Pass block_size 12",
    ),
    (
        "class make(Tiny):\n    def trunk(self, idx): return F.dropout(super().trunk(idx), 0.1)",
        "other logits the second time .* random numbers",
    ),
    (
        COUNTS,
        "remembers what it was given before",
    ),
    ("make = torch.jit.script(nn.Linear(3, 3))", "it is TorchScript .* Return the nn.Module"),
    ("make = Tiny()\nmake.proj = torch.jit.script(make.proj)", "its proj is TorchScript"),
    ("make = Tiny().to('meta')", r"wte\.weight is on the meta device.*Load the weights"),
    (
        "make = nn.DataParallel(Tiny())\nmake.register_forward_hook(lambda module, idx, output: output * 2)",
        "gives other logits than as the factory gave it.*hooks on them",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_exported_as_it_came_is_refused(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_checkpoint(source(tmp_path, body))


def test_a_hook_inside_stays(tmp_path: Path) -> None:
    body = "make = Tiny()\nmake.proj.register_forward_hook(lambda module, x, output: output * 2)"
    doubled = load_checkpoint(source(tmp_path, body)).model(IDS)
    assert torch.equal(doubled, expected(tmp_path, f"{body}\nmaker = lambda: make", "maker"))
    assert not torch.allclose(doubled, expected(tmp_path, name="Tiny"))


def test_logits_that_mean_their_nan_are_compared_for_it(tmp_path: Path) -> None:
    """A forward that masks a padded vocabulary with -inf, or answers padding with NaN, is right to."""
    body = """
class make(Tiny):
    def forward(self, idx):
        logits = super().forward(idx).masked_fill(torch.arange(V) > 28, float("-inf"))
        return logits.masked_fill((idx == 0)[..., None], float("nan"))
"""
    assert load_checkpoint(source(tmp_path, body)).vocab_size == 31


def test_a_forward_that_does_not_take_rows_of_one_id_is_loaded_and_said_to(tmp_path: Path) -> None:
    body = "class make(Tiny):\n    def forward(self, idx):\n        assert (idx != 30).any(-1).all(), 'no text'\n"
    body += "        return super().forward(idx)"
    checkpoint = load_checkpoint(source(tmp_path, body))
    assert any("does not take rows of one id alone" in note and "no text" in note for note in checkpoint.notes)


def wrong(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A mistake of our own on the way in."""
    cast = casting.cast_parameters

    def cast_and(then: Callable[[nn.Module], object]) -> None:
        def both(model: nn.Module, dtype: torch.dtype) -> None:
            cast(model, dtype)
            then(model)

        monkeypatch.setattr(module, "cast_parameters", both)

    def unshare(model: nn.Module) -> None:
        model.get_submodule("head").weight = nn.Parameter(model.get_parameter("wte.weight").clone())

    def share(model: nn.Module) -> None:
        model.get_submodule("head").weight = model.get_parameter("wte.weight")

    def round_it(model: nn.Module) -> None:
        model.get_buffer("table").copy_(model.get_buffer("table").bfloat16())

    faults: dict[str, Callable[[], object]] = {
        "a complex buffer made real": lambda: monkeypatch.setattr(
            module, "cast_parameters", lambda model, dtype: model.to(dtype)
        ),
        "a float64 buffer rounded": lambda: cast_and(lambda model: model.float()),
        "a buffer rounded": lambda: cast_and(round_it),
        "a buffer dropped": lambda: cast_and(lambda model: model.register_buffer("table", None)),
        "a parameter unshared": lambda: cast_and(unshare),
        "a parameter shared": lambda: cast_and(share),
        "train mode": lambda: monkeypatch.setattr(forward.LogitsOf, "eval", nn.Module.train),
        "hooks lost": lambda: monkeypatch.setattr(
            module, "unwrap", lambda model: [part._forward_hooks.clear() for part in model.modules()] and model
        ),
        "a wrapper's forward skipped": lambda: monkeypatch.setattr(module, "unwrap", lambda model: model.inner),
        "other logits taken": lambda: monkeypatch.setattr(
            forward.LogitsOf, "forward", lambda self, idx: self.module(idx).flip(-1)
        ),
    }
    faults[fault]()


TIED = "make = Tiny()\nmake.head = nn.Linear(C, V, bias=False)\nmake.head.weight = make.wte.weight\n"
HALF = "for p in make.parameters(): p.data = p.data.bfloat16()\n"
TABLE = "make = Tiny()\nmake.register_buffer('table', torch.rand(7))\n"
HOOKED = "make = Tiny()\nmake.ln.register_forward_hook(lambda module, x, output: output * 2)"
AROUND = """
class Around(nn.Module):
    block_size = T_MAX
    def __init__(self):
        super().__init__()
        self.inner = Tiny()
    def forward(self, idx):
        return self.inner(idx) * 3
make = Around
"""
OURS = [
    ("a complex buffer made real", "make = Rotary"),
    ("a complex buffer made real", f"make = Rotary()\n{HALF}"),
    ("a float64 buffer rounded", "make = Doubled"),
    ("a buffer rounded", TABLE),
    ("a buffer rounded", TABLE + HALF),
    ("a buffer dropped", TABLE),
    ("a parameter unshared", TIED),
    ("a parameter shared", "make = Tiny"),
    ("train mode", "make = Tiny"),
    ("hooks lost", HOOKED),
    ("hooks lost", f"{HOOKED}\n{HALF}"),
    ("a wrapper's forward skipped", AROUND),
    ("other logits taken", "make = Tiny"),
]


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize(("fault", "body"), OURS)
def test_every_mistake_of_our_own_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, body: str
) -> None:
    load_checkpoint(source(tmp_path, body))
    wrong(monkeypatch, fault)
    with pytest.raises(CheckpointError, match=r"changed more than its dtype|gives other logits than as the factory"):
        load_checkpoint(source(tmp_path, body))


def loaded(tmp_path: Path, body: str, **options: Any) -> Checkpoint:
    return load_checkpoint(source(tmp_path, body), **options)


def test_ids_and_logits_of_different_sizes(tmp_path: Path) -> None:
    """A head that is padded, and an id that only ever begins a text."""
    assert loaded(tmp_path, "make = Tiny").input_vocab_size is None
    wide = loaded(tmp_path, "make = lambda: Tiny(ids=29)")
    assert (wide.vocab_size, wide.input_vocab_size, wide.predicted_ids) == (31, 29, 29)
    assert any("--vocab-size 29 drops them" in note for note in wide.notes)
    start = loaded(tmp_path, "make = lambda: Tiny(ids=32)")
    assert (start.vocab_size, start.input_vocab_size, start.predicted_ids) == (31, 32, 31)
    cut = loaded(tmp_path, "make = lambda: Tiny(ids=29)", vocab_size=29)
    assert (cut.vocab_size, cut.input_vocab_size) == (29, None)
    assert loaded(tmp_path, "make = lambda: Tiny(ids=200)").input_vocab_size == 200
    anything = "class make(Tiny):\n    def forward(self, idx): return super().forward(idx % V)"
    assert loaded(tmp_path, anything).input_vocab_size is None, "it has no table that ends"


def test_an_id_that_is_never_predicted_begins_a_text(tmp_path: Path) -> None:
    export_onnx(loaded(tmp_path, "make = lambda: Tiny(ids=32)"), tmp_path / "out")
    ids = np.array([[31, 5, 6, 7]])
    with load(tmp_path / "out", "cpu") as session, torch.no_grad():
        right = made(tmp_path, "make = lambda: Tiny(ids=32)")(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(session.logits(ids), right, rtol=1e-4, atol=1e-5)
        assert np.isfinite(session.score(ids).logprobs).all()
        with pytest.raises(InputError, match=r"ids\[0\]\[2\] is 31, which the model takes and never predicts"):
            session.score([[1, 2, 31]])
        with pytest.raises(InputError, match="expected 0 <= id < 32"):
            session.logits([[32]])
        assert max(session.generate([[31]])[0]) < 31


def test_a_token_without_an_embedding_ends_a_row(tmp_path: Path) -> None:
    body = "def make():\n    model = Tiny(ids=29)\n    nn.init.constant_(model.head.bias[30:], 99.0)\n    return model"
    export_onnx(loaded(tmp_path, body), tmp_path / "out")
    with load(tmp_path / "out", "cpu") as session:
        assert session.generate([[1, 2]], temperature=0)[0].tolist() == []
        with pytest.raises(InputError, match="expected 0 <= id < 29"):
            session.logits([[29]])


def test_what_takes_too_long_is_not_run_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_it_came, "MAX_BYTES", 1 << 17)
    body = "class make(Tiny):\n    block_size = 4096\n    def positions(self, idx): return 0"
    checkpoint = loaded(tmp_path, body)
    assert checkpoint.block_size == 4096
    assert "block_size 4096 takes too long to be tried here: forward was run up to 64" in checkpoint.notes
