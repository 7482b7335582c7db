"""The report: one file, whole HTML, nothing from elsewhere, and what it must say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gptexport.parity.report.figures import short_names
from tests.support.cli import Cli
from tests.support.faults import set_attribute, tampered

LEGEND = '<path class="dot wrong" d="M204.0 8.5l5.5 5.5l-5.5 5.5l-5.5-5.5z">'
VOID = {"meta", "circle", "line", "polyline", "polygon", "br"}


class Balanced(HTMLParser):
    """Every tag closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


OWN = """
import torch, torch.nn as nn
class Own(nn.Module):
    vocab_size, block_size = 11, 7
    def __init__(self):
        super().__init__()
        self.wte, self.wpe, self.head = nn.Embedding(11, 8), nn.Embedding(7, 8), nn.Linear(8, 11)
    def forward(self, idx):
        return self.head(self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device)))
def make():
    torch.manual_seed(0)
    return Own()
"""


def read(path: Path) -> tuple[str, str]:
    """The source and the words of a report that is whole and self-contained."""
    page = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page and "<img" not in page and "<link" not in page
    assert not re.search(r"https?://|url\(|@import", page)
    assert "nan" not in re.findall(r'points="([^"]*)"', page)
    for attribute in re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2|points|d)="([^"]*)"', page):
        assert not re.search("nan|inf", attribute), attribute
    return page, " ".join(parser.texts)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    np.tile(np.arange(97), 9).astype(np.uint16).tofile(tmp_path / "val.bin")
    return tmp_path / "val.bin"


def test_of_a_pass(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path, text_file: Path) -> None:
    report = tmp_path / "r.html"
    made = tampered(bundle, tmp_path / "<b>&")
    arguments = ("--tokens", text_file, "--tokenizer", "bytes", "--report", report)
    assert cli("parity", made, "--against", checkpoint, *arguments).code == 0
    page, words = read(report)
    assert "PASS" in words and "It is the same model" in words
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page
    for heading in ("Every shape of the grid", "Every step of the model", "The worst tokens", "Environment and hashes"):
        assert heading in words
    assert page.count("<svg") == page.count('role="img"') == page.count("</svg>") == 4
    assert "perplexity of the checkpoint" in words and "median" in words
    assert 'class="dot right"' in page and 'class="dot wrong"' not in page.replace(LEGEND, "")
    assert "real text" in words and "noise_ratio 2, max_ratio 4" in words, "what it was judged by"
    assert str(tmp_path) not in page, "a report is passed on; it holds no path of this machine"
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_of_a_failure(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    made = tampered(bundle, tmp_path / "b", set_attribute("Gelu", None, approximate="tanh"))
    assert cli("parity", made, "--against", checkpoint, "--report", report).code == 3
    page, words = read(report)
    assert words.index("FAIL") < words.index("RMS error is") < words.index("Where it is wrong")
    assert "looks like GELU tanh for erf" in words and "The cause" in words
    assert page.count('<path class="dot wrong"') >= 3, "told from what is right by shape, not by colour alone"
    numbers = page.split('<details class="long">')[1].split("</details>")[0]
    steps = re.findall(r'<th scope="row">([^<]*)</th><td>(right|wrong)</td>', numbers)
    assert ("h.0.mlp.gelu", "wrong") in steps and ("h.0.ln_1", "right") in steps, "what a chart shows, in words too"


def test_what_to_do_about_another_gelu(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    assert cli("onnx", checkpoint, "-o", tmp_path / "b", "--gelu", "tanh").code == 0
    ran = cli("parity", tmp_path / "b", "--against", checkpoint, "--report", tmp_path / "r.html", "--quick")
    assert ran.code == 3
    advice = "If it was trained with tanh, pass --gelu tanh here too."
    assert advice in ran.out and advice in read(tmp_path / "r.html")[1]


def test_names_below_a_chart_stand_without_what_they_have_in_common() -> None:
    assert short_names(["module.model.layers.0", "module.model.layers.1"]) == ["layers.0", "layers.1"]
    assert short_names(["h.0", "h.1"]) == ["h.0", "h.1"]
    assert short_names(["a.b.c.0", "a.d.c.0"]) == ["b.c.0", "d.c.0"]
    assert short_names([]) == []


def test_of_nan(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    from tests.support.faults import scale_weight

    report = tmp_path / "r.html"
    made = tampered(bundle, tmp_path / "b", scale_weight("h.1.ln_1.weight", np.nan))
    assert cli("parity", made, "--against", checkpoint, "--report", report, "--quick").code == 3
    page, words = read(report)
    assert "NaN or Inf in the logits" in words
    charts = page.split("The error of the logits")[1].split("</section>")[0]
    assert "line eager" in charts and "line actual" not in charts, "of no numbers no line, and no legend"


def test_of_a_model_without_blocks(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(OWN)
    assert cli("onnx", f"{source}:make", "-o", tmp_path / "own").code == 0
    ran = cli("parity", tmp_path / "own", "--against", f"{source}:make", "--report", tmp_path / "r.html")
    assert ran.code == 0, ran.err
    assert "Every step of the model" in read(tmp_path / "r.html")[1]


def test_of_two_that_cannot_be_compared(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    from tests.support.builders import tiny_nanogpt

    report = tmp_path / "r.html"
    other = tiny_nanogpt(tmp_path / "other.pt", vocab_size=101)
    assert cli("parity", tampered(bundle, tmp_path / "b"), "--against", other, "--report", report).code == 3
    assert "vocab_size is 97, the checkpoint's 101" in read(report)[1]


def test_of_saved_measurements(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    saved, report = tmp_path / "p.json", tmp_path / "r.html"
    arguments = ("--against", checkpoint, "--shapes", "2x5", "--save", saved)
    assert cli("parity", tampered(bundle, tmp_path / "b"), *arguments).code == 0
    assert cli("parity", saved, "--report", report).code == 0
    page, words = read(report)
    assert "PASS" in words and page.count("<svg") == 3, "all but the steps, which need the model"
