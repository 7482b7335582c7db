"""`gptexport bench`: what is timed, and what is told of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.fake_engine import write_engine


def test_the_command_times_both(cli: Cli, tmp_path: Path) -> None:
    ckpt = tiny_nanogpt(tmp_path / "ckpt.pt")
    assert cli("onnx", ckpt, "-o", tmp_path / "gpt", "-q").code == 0
    ran = cli(
        *("bench", tmp_path / "gpt", "--against", ckpt, "--rounds", 1, "--shapes", "1x1,2x999", "--json", "-q"),
        *("--plot", tmp_path / "speed.svg"),
    )
    data = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert [(t["name"], t["shape"]) for t in data["timings"]] == [
        ("gptexport", [1, 1]),
        ("eager", [1, 1]),
        ("gptexport", [2, 17]),  # clamped to block_size
        ("eager", [2, 17]),
    ]
    assert all(1e6 < t["peak_bytes"] < 1e9 for t in data["timings"] if t["name"] == "gptexport")
    assert all(0 < t["gemm_fraction"] < 1.5 and 0 < t["fastest"] <= t["warm"] for t in data["timings"])
    assert all(t["cold"] > 0 and len(t["speed_ratio_quartiles"]) == 2 for t in data["timings"])
    assert cli("bench", tmp_path / "gpt", "--rounds", 0).code == 2
    assert cli("bench", tmp_path / "gpt", "--plot", tmp_path / "nowhere" / "speed.svg").code == 2
    other = cli("bench", tmp_path / "gpt", "--plot", tmp_path / "speed.png")
    assert other.code == 2 and "speed.png: the chart is SVG; name it speed.svg." in other.err
    svg = ElementTree.parse(tmp_path / "speed.svg")
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("eager") == words.count("gptexport") == 2 and "2×17" in words


def test_flops_are_known_without_the_checkpoint(cli: Cli, tmp_path: Path) -> None:
    """The bundle tells its sizes."""
    assert cli("onnx", tiny_nanogpt(tmp_path / "ckpt.pt"), "-o", tmp_path / "gpt", "-q").code == 0
    ran = cli("bench", tmp_path / "gpt", "--rounds", 1, "--shapes", "1x3,1x99")
    assert ran.code == 0 and re.search(r"1x3 .* \d+ % +\d+ MB", ran.out)
    assert "longer than the context, which is 17" in ran.err and all(len(line) <= 80 for line in ran.out.splitlines())


def test_an_engine_is_timed_on_a_gpu(cli: Cli, tmp_path: Path) -> None:
    """And is refused as one, not as a file that the CPU cannot open."""
    engine = write_engine(tmp_path)
    ran = cli("bench", engine)
    assert ran.code in (1, 4) and ran.err != cli("bench", engine, "--device", "cpu").err
