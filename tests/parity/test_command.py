"""`gptexport parity`: usage errors, token files, --json, and the verdict in the manifest."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptexport.artifacts import Bundle, describe_artifact
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import check
from gptexport.parity.locate import diagnosis, search
from gptexport.precision import INT8, PRECISIONS
from gptexport.staging import watched
from tests.support.cli import Cli
from tests.support.faults import scale_weight, tampered

SHAPES = ("--shapes", "1x3,2x17")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """The right export, to write a verdict into."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.mark.parametrize("text", ["3", "3x", "x3", "0x3", "3x0", "-1x3", "3x5x7", "1x1,,2x2", "axb", "1.5x2", ""])
def test_a_shape_that_is_none_is_a_usage_error(cli: Cli, copy: Path, checkpoint: Path, text: str) -> None:
    ran = cli("parity", copy, "--against", checkpoint, "--shapes", text)
    assert ran.code == 2
    assert "is not a shape; expected BxT with both at least 1" in ran.err


def test_a_shape_beyond_the_context_is_a_usage_error(cli: Cli, copy: Path, checkpoint: Path) -> None:
    ran = cli("parity", copy, "--against", checkpoint, "--shapes", "1x17,2x18,1x99")
    assert ran.code == 2
    assert "2x18, 1x99: T is beyond block_size 17" in ran.err


@pytest.mark.parametrize(
    "arguments", [(), ("--against",), ("--against", "c", "--device", "tpu"), ("--against", "c", "--gelu", "relu")]
)
def test_wrong_options_are_usage_errors(cli: Cli, copy: Path, arguments: tuple[str, ...]) -> None:
    assert cli("parity", copy, *arguments).code == 2


@pytest.mark.parametrize(
    ("option", "name"), [("--save", "gone/p.json"), ("--save", "p.txt"), ("--report", "gone/r.html")]
)
def test_an_output_that_cannot_be_is_a_usage_error_at_once(
    cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path, option: str, name: str
) -> None:
    ran = cli("parity", copy, "--against", checkpoint, option, tmp_path / name)
    assert ran.code == 2 and option in ran.err and "comparing" not in ran.err


def test_what_is_not_there(cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert cli("parity", tmp_path / "gone", "--against", checkpoint).code == 2
    assert cli("parity", copy, "--against", tmp_path / "gone.pt").code == 1
    assert cli("parity", copy, "--against", checkpoint, "--tokens", tmp_path / "gone.bin").code == 2


def test_a_damaged_bundle_is_refused(cli: Cli, copy: Path, checkpoint: Path) -> None:
    """The weights' hash is checked too: a verdict on damaged weights would be about another model."""
    weights = bytearray((copy / "weights.data").read_bytes())
    weights[100] ^= 1
    (copy / "weights.data").write_bytes(weights)
    ran = cli("parity", copy, "--against", checkpoint)
    assert ran.code == 1
    assert "weights.data has sha256" in ran.err


def test_json_schema(cli: Cli, copy: Path, checkpoint: Path) -> None:
    ran = cli("parity", copy, "--against", checkpoint, "--json", *SHAPES)
    result = json.loads(ran.out)
    assert result["schema_version"] == 1
    assert (result["command"], result["ok"], result["passed"]) == ("parity", True, True)
    assert result["dtype"] == "float32"
    assert result["gates"]["noise_ratio"] == 2.0
    assert [row["shape"] for row in result["shapes"]] == [[1, 3], [2, 17]]
    assert result["noise_ratio"] == max(row["noise_ratio"] for row in result["shapes"])
    numbers = {"noise_ratio", "max_ratio", "relative_rms", "eager_relative_rms", "max_abs", "kl_mean", "top1_agreement"}
    for row in result["shapes"]:
        assert numbers <= row.keys()
        assert all(isinstance(row[name], float) for name in numbers)
        assert row["missed"] == [] and row["flips_outside_ties"] == 0


def test_json_has_no_nan(cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """NaN is not JSON; strict parsers must be able to read a failing verdict."""
    made = tampered(bundle, tmp_path / "b", scale_weight("ln_f.weight", np.nan))
    ran = cli("parity", made, "--against", checkpoint, "--json", *SHAPES)
    assert ran.code == 3

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for text in (ran.out, (made / "gptexport.json").read_text()):
        json.loads(text, parse_constant=refuse)


def test_progress_goes_to_stderr(cli: Cli, copy: Path, checkpoint: Path) -> None:
    ran = cli("parity", copy, "--against", checkpoint, *SHAPES)
    assert "comparing at B,T = 2,17" in ran.err and "comparing" not in ran.out
    assert cli("parity", copy, "--against", checkpoint, "-q", *SHAPES).err == ""


def test_the_verdict_is_kept_in_the_manifest(cli: Cli, copy: Path, checkpoint: Path) -> None:
    assert "not checked" in cli("inspect", copy).out
    assert cli("parity", copy, "--against", checkpoint, *SHAPES).code == 0
    manifest = json.loads((copy / "gptexport.json").read_text())
    record = manifest["parity"]
    assert record["passed"] is True
    assert record["graphs_sha256"] == {kind: entry["sha256"] for kind, entry in manifest["graphs"].items()}
    assert record["weights_sha256"] == manifest["weights"]["sha256"]
    assert record["checkpoint_sha256"] == manifest["source"]["sha256"]
    assert "passed on cpu, noise ratio" in cli("inspect", copy).out
    again = (copy / "gptexport.json").read_bytes()
    assert cli("parity", copy, "--against", checkpoint, *SHAPES).code == 0
    assert (copy / "gptexport.json").read_bytes() == again, "a rerun writes the same bytes"


def test_a_failure_against_the_same_checkpoint_replaces_an_earlier_pass(
    cli: Cli, copy: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of another version of ONNX Runtime, or another machine."""
    assert cli("parity", copy, "--against", checkpoint, *SHAPES).code == 0
    strict = replace(PRECISIONS["float32"].gates, noise_ratio=1e-9)
    monkeypatch.setattr(check, "changed_gates", lambda *_: strict)
    assert cli("parity", copy, "--against", checkpoint, *SHAPES).code == 3
    assert json.loads((copy / "gptexport.json").read_text())["parity"]["passed"] is False
    assert "FAILED" in cli("inspect", copy).out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_single_graph_is_judged_in_the_precision_of_its_weights(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """It has no manifest to say so."""
    made = export_onnx(load_checkpoint(str(checkpoint)), tmp_path / "gpt.onnx", dtype=dtype)
    assert describe_artifact(made.path).precision is PRECISIONS[dtype]


def test_single_graphs(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    half = export_onnx(load_checkpoint(str(checkpoint)), tmp_path / "gpt.onnx", dtype="float16").path
    ran = cli("parity", half, "--against", checkpoint, *SHAPES)
    assert ran.code == 0 and "the same model in float16" in ran.out
    quantized = export_onnx(load_checkpoint(str(checkpoint)), tmp_path / "q", target="cpu", quantize="int8").path
    assert describe_artifact(quantized / "logits.onnx").precision is INT8


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--save", "copy/gptexport.json", "holds no saved measurements to replace"),
        ("--save", "copy/weights.data", "does not end in .json"),
        ("--report", "copy/weights.data", "does not end in .html"),
        ("--report", "copy/notes.html", "holds no report of gptexport parity to replace"),
    ],
)
def test_nothing_is_replaced_but_what_parity_wrote(
    cli: Cli, copy: Path, checkpoint: Path, option: str, name: str, message: str
) -> None:
    (copy / "notes.html").write_text("<p>mine")
    before = (copy.parent / name).read_bytes()
    ran = cli("parity", copy, "--against", checkpoint, option, copy.parent / name)
    assert ran.code == 2 and message in " ".join(ran.err.split())
    assert (copy.parent / name).read_bytes() == before


def test_a_full_disk_costs_a_note_and_not_the_verdict(cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    def full(step: str, path: Path) -> None:
        if step == "write" and path.name in ("p.json", "r.html", "gptexport.json"):
            raise OSError(28, "No space left on device")

    options = ("--save", tmp_path / "p.json", "--report", tmp_path / "r.html")
    before = (copy / "gptexport.json").read_bytes()
    with watched(full):
        ran = cli("parity", copy, "--against", checkpoint, *options, *SHAPES)
    assert ran.code == 0 and "PASS" in ran.out
    notes = [line for line in ran.err.splitlines() if "No space left on device" in line]
    assert len(notes) == 3 and "not saved" in ran.err and "no report" in ran.err
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob("*.html"))
    assert (copy / "gptexport.json").read_bytes() == before


def test_the_manifest_itself_names_the_bundle(cli: Cli, copy: Path, checkpoint: Path) -> None:
    assert cli("parity", copy / "gptexport.json", "--against", checkpoint, *SHAPES).code == 0
    assert json.loads((copy / "gptexport.json").read_text())["parity"]["passed"] is True


def test_an_interrupt_leaves_no_verdict_and_no_file(copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    before = (copy / "gptexport.json").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    options = ["--save", str(out / "p.json"), "--report", str(out / "r.html")]
    command = [sys.executable, "-m", "gptexport", "parity", str(copy), "--against", str(checkpoint), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "comparing at" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    printed, rest = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said + rest and printed == ""
    assert list(out.iterdir()) == [] and (copy / "gptexport.json").read_bytes() == before


class TestTheVerdictComesFirst:
    """What may fail after it costs a line, never the verdict."""

    def test_a_place_that_cannot_be_written(
        self, cli: Cli, copy: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read_only(*_: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Bundle, "certify", read_only)
        ran = cli("parity", copy, "--against", checkpoint, *SHAPES)
        assert ran.code == 0 and "PASS  the same model" in ran.out
        (note,) = (line for line in ran.err.splitlines() if "note" in line)
        assert "the verdict could not be recorded: [Errno 30] Read-only file system" in note
        result = json.loads(cli("parity", copy, "--against", checkpoint, "--json", *SHAPES).out)
        assert result["passed"] and result["recorded"] is None and len(result["notes"]) == 1

    @pytest.mark.parametrize("wrong", [False, True])
    def test_a_search_that_fails(
        self, cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("mat1 and mat2 must have the same dtype\nand more")

        monkeypatch.setattr(diagnosis, "find_wrong_step", fail)
        monkeypatch.setattr(diagnosis, "find_cause", fail)
        made = tampered(bundle, tmp_path / "b", *([scale_weight("ln_f.weight", 1.01)] if wrong else []))
        ran = cli("parity", made, "--against", checkpoint, *SHAPES)
        assert ran.code == (3 if wrong else 0)
        notes = [line for line in ran.err.splitlines() if "note" in line]
        assert len(notes) == 1 + wrong and "same dtype" in notes[0] and "and more" not in ran.err
        assert json.loads((made / "gptexport.json").read_text())["parity"]["passed"] is not wrong

    def test_an_experiment_that_fails(
        self, cli: Cli, bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise AssertionError("the run ended before the step did")

        monkeypatch.setattr(search, "explain", fail)
        made = tampered(bundle, tmp_path / "b", scale_weight("h.1.mlp.c_fc.bias", 0))
        ran = cli("parity", made, "--against", checkpoint, "--quick")
        assert ran.code == 3 and "WHERE  h.1.mlp.c_fc (Add, MatMul): error ×" in ran.out
        assert "nothing was tried in its place: the run ended before the step did" in ran.out


class TestTokens:
    """--tokens: real text, in the formats that people have."""

    IDS = (np.arange(400) * 31 % 97).astype(np.uint16)

    def write(self, path: Path, kind: str) -> Path:
        if kind == "build-nanogpt":
            np.save(path, self.IDS)
        elif kind == "llm.c":
            header = np.zeros(256, np.int32)
            header[:3] = 20240520, 1, len(self.IDS)
            path.write_bytes(header.tobytes() + self.IDS.tobytes())
        else:
            self.IDS.tofile(path)
        return path

    @pytest.mark.parametrize("kind", ["nanogpt", "build-nanogpt", "llm.c"])
    def test_each_format(self, cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path, kind: str) -> None:
        path = self.write(tmp_path / ("val.npy" if kind == "build-nanogpt" else "val.bin"), kind)
        ran = cli("parity", copy, "--against", checkpoint, "--tokens", path, *SHAPES)
        assert ran.code == 0, ran.err

    @pytest.mark.parametrize("kind", ["nanogpt", "build-nanogpt", "llm.c"])
    def test_each_format_gives_the_same_ids(self, tmp_path: Path, kind: str) -> None:
        from gptexport.parity import read_tokens

        path = self.write(tmp_path / ("val.npy" if kind == "build-nanogpt" else "val.bin"), kind)
        assert np.array_equal(read_tokens(path, 97), self.IDS)

    def test_ids_that_the_model_does_not_have(self, cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path) -> None:
        (self.IDS + 60).tofile(tmp_path / "val.bin")
        ran = cli("parity", copy, "--against", checkpoint, "--tokens", tmp_path / "val.bin")
        assert ran.code == 1
        assert "the model has 0 to 96. Is it another tokenizer's?" in ran.err

    def test_a_text_shorter_than_a_shape(self, cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path) -> None:
        self.IDS[:9].tofile(tmp_path / "val.bin")
        ran = cli("parity", copy, "--against", checkpoint, "--tokens", tmp_path / "val.bin", *SHAPES)
        assert ran.code == 1
        assert "holds 9 tokens; shape 2x17 needs at least 17" in ran.err
        assert "comparing" not in ran.err, "before the work"

    def test_tokens_of_llama_3_are_named(self, tmp_path: Path) -> None:
        from gptexport.parity import read_tokens
        from gptexport_runtime import GPTExportError

        header = np.zeros(256, np.int32)
        header[:3] = 20240801, 7, len(self.IDS)
        (tmp_path / "val.bin").write_bytes(header.tobytes() + self.IDS.astype(np.uint32).tobytes())
        with pytest.raises(GPTExportError, match="Llama 3's tokenizer"):
            read_tokens(tmp_path / "val.bin", 65536)

    @pytest.mark.parametrize("data", [b"", b"x", b"odd"])
    def test_a_file_that_is_no_tokens(
        self, cli: Cli, copy: Path, checkpoint: Path, tmp_path: Path, data: bytes
    ) -> None:
        for name in ("val.bin", "val.npy", "val.dat"):
            (tmp_path / name).write_bytes(data)
            ran = cli("parity", copy, "--against", checkpoint, "--tokens", tmp_path / name)
            assert ran.code == 1 and name in ran.err, ran.err

    @pytest.mark.parametrize("array", [np.zeros((2, 3), np.int32), np.zeros(5), np.zeros(0, np.int64)])
    def test_an_array_that_is_no_row_of_ids(self, tmp_path: Path, array: np.ndarray) -> None:
        from gptexport.parity import read_tokens
        from gptexport_runtime import GPTExportError

        np.save(tmp_path / "val.npy", array)
        with pytest.raises(GPTExportError, match="expected a row of integers"):
            read_tokens(tmp_path / "val.npy", 97)
