"""A sidecar says what its engine is, and is read back as it was written; other sidecars are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gptexport_runtime import ArtifactError
from gptexport_runtime.contract.edition import EDITIONS, TENSORRT, TENSORRT_RTX
from gptexport_runtime.contract.engine import EngineInfo, Profile, TensorInfo
from gptexport_runtime.contract.model import Description, FileEntry

INFO = EngineInfo(
    engine=FileEntry(file="gpt.engine", bytes=32, sha256="0" * 64),
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    compute_capabilities=("8.9", "12.0"),
    built_on=None,
    options={"tf32": True, "timing_cache": False},
    onnx={"logits.onnx": "1" * 64},
    model={"vocab_size": 5, "block_size": 32, "of_a_newer_version": True},
    dtype="float16",
    inputs=(TensorInfo(name="input_ids", dtype="int64", shape=("B", "T")),),
    outputs=(TensorInfo(name="logits", dtype="float32", shape=("B", "T", 5)),),
    profiles=(Profile(min=(1, 1), opt=(1, 4), max=(2, 8)),),
    activation_bytes=(1000,),
    weight_bytes=4,
    parity={"passed": True, "engine_sha256": "0" * 64},
)


def test_a_sidecar_is_read_back_as_it_was_written() -> None:
    assert EngineInfo.from_json(INFO.to_json(), "x") == INFO


def test_an_engine_answers_what_every_description_answers() -> None:
    described: Description = INFO  # for the type checker
    assert (described.info.vocab_size, described.info.block_size) == (5, 32)
    assert (described.dtype, described.quantize, described.runs_on) == ("float16", None, ("cuda",))
    assert described.why_stale() is None
    stale = replace(INFO, parity={"passed": True, "engine_sha256": "2" * 64}).why_stale()
    assert stale == "its parity verdict does not belong to it: it was measured on another engine."
    assert replace(INFO, parity=None).why_stale() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flavour": "tensorrt-lite"}, "x is refused: flavour is 'tensorrt-lite'; expected tensorrt or tensorrt-rtx"),
        ({"profiles": []}, "x is refused: profiles is empty"),
        ({"profiles": [{"min": [2, 1], "opt": [1, 1], "max": [4, 4]}]}, "profiles.0 is refused: profile B 2 to 4"),
        ({"model": {"vocab_size": 0}}, "vocab_size is 0; expected an integer from 1"),
        ({"activation_bytes": [True]}, "activation_bytes.0 is True; expected an integer"),
    ],
)
def test_an_impossible_sidecar_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        EngineInfo.from_json(json.dumps({**json.loads(INFO.to_json()), **change}), "x")


def test_editions_are_told_apart_by_their_engines() -> None:
    assert [EDITIONS[name] for name in ("tensorrt", "tensorrt-rtx")] == [TENSORRT, TENSORRT_RTX]
    assert TENSORRT.magic != TENSORRT_RTX.magic
    assert TENSORRT_RTX.install("gptexport") == "pip install gptexport[rtx]"


def test_what_builds_it_again_names_its_targets_where_they_are_named() -> None:
    rtx = INFO.rebuild_command
    assert rtx.endswith("--min 1x1 --opt 1x4 --max 2x8 --compute-capability 8.9 --compute-capability 12.0 --tf32")
    assert replace(INFO, flavour="tensorrt").rebuild_command.endswith("--max 2x8 --tf32")
