"""Engines that are really built: small, the same twice, without the scores; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from gptexport.checkpoints import load_checkpoint
from gptexport.engine import BuildOptions, BuiltEngine, open_source
from gptexport.errors import EngineError, OutputExistsError
from gptexport.export import export_onnx
from gptexport_runtime import ArtifactError
from gptexport_runtime.contract.edition import TENSORRT_RTX
from gptexport_runtime.engine_file import read_engine_info, read_header
from tests.support.few import few

SM89, SM120 = 0x08, 0x10  # of the targets in a header of TensorRT for RTX 1.7; undocumented, found by trying

Export = Callable[..., Path]
Build = Callable[..., BuiltEngine]


@pytest.mark.parametrize("dtype", few(["bfloat16", "float16", "float32"], 1))
def test_builds_the_same_bytes_twice_and_from_elsewhere(
    dtype: str, export: Export, build: Build, tmp_path: Path
) -> None:
    bundle = export(dtype)
    elsewhere = shutil.copytree(bundle, tmp_path / "elsewhere" / "renamed")
    first = build(bundle, tmp_path / "gpt.engine", targets=("8.9", "12.0"))
    second = build(elsewhere, tmp_path / "elsewhere" / "gpt.engine", targets=("8.9", "12.0"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.info.to_json() == second.info.to_json() == (tmp_path / "gpt.engine.json").read_text()
    assert str(tmp_path).encode() not in first.path.read_bytes()
    assert str(tmp_path) not in first.info.to_json()
    assert read_engine_info(first.path) == first.info
    assert read_header(first.path.read_bytes(), first.path).edition is TENSORRT_RTX
    assert first.info.dtype == dtype
    assert first.info.source == json.loads((bundle / "gptexport.json").read_text())["source"], "whose model it is"
    assert first.info.compute_capabilities == ("8.9", "12.0")
    assert first.path.read_bytes()[32] == SM89 | SM120


def test_folder_holds_the_engine_and_its_sidecar_and_nothing_else(export: Export, build: Build, tmp_path: Path) -> None:
    build(export("bfloat16"), tmp_path / "new" / "gpt.engine")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["gpt.engine", "gpt.engine.json", "new"]


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("bfloat16", 2)])
def test_tied_weight_is_in_the_engine_once(dtype: str, item: int, export: Export, build: Build, tmp_path: Path) -> None:
    """97 tokens: an odd vocabulary is what makes TensorRT keep the head's weight again."""
    bundle = export(dtype, n_embd=48)
    info = build(bundle, tmp_path / "gpt.engine").info
    source = open_source(bundle)
    assert source.manifest is not None
    assert info.weight_bytes < item * (source.manifest.parameters + 97 * 48 / 2)
    assert info.graph["padded_vocab"] == (100 if dtype == "float32" else 104)


def test_scores_are_never_in_memory_in_16_bits(export: Export, build: Build, tmp_path: Path) -> None:
    sizes = {"block_size": 1024, "n_layer": 1, "n_head": 4, "n_embd": 64}
    scores = 8 * 4 * 1024 * 1024  # B x n_head x T x T
    narrow = build(export("bfloat16", **sizes), tmp_path / "narrow.engine").info
    wide = build(export("float32", **sizes), tmp_path / "wide.engine").info
    assert narrow.graph["fused_attention"] == 1
    assert narrow.activation_bytes[0] < scores * 2 / 4
    assert wide.graph["decomposed_attention"] == 1  # there is no float32 kernel
    assert wide.activation_bytes[0] > scores * 4


def test_attention_without_a_kernel_is_decomposed_and_said_so(export: Export, build: Build, tmp_path: Path) -> None:
    """Heads of 8: no kernel in 16 bits either."""
    info = build(export("bfloat16", n_embd=24), tmp_path / "gpt.engine").info
    assert (info.graph["fused_attention"], info.graph["decomposed_attention"]) == (0, 3)


def test_several_profiles_each_with_its_memory(export: Export, build: Build, tmp_path: Path) -> None:
    info = build(export("bfloat16"), tmp_path / "gpt.engine", high=[(2, 4), (64, 17)]).info
    assert [profile.max for profile in info.profiles] == [(2, 4), (64, 17)]
    small, large = info.activation_bytes
    assert small < large


def test_tf32_is_off_unless_asked_for(export: Export, build: Build, tmp_path: Path) -> None:
    exact = build(export("float32"), tmp_path / "exact.engine")
    fast = build(export("float32"), tmp_path / "fast.engine", options=BuildOptions(tf32=True))
    assert exact.path.read_bytes() != fast.path.read_bytes()
    assert (exact.info.options["tf32"], fast.info.options["tf32"]) == (False, True)


def test_weight_streaming_is_passed_on(export: Export, build: Build, tmp_path: Path) -> None:
    plain = build(export("bfloat16"), tmp_path / "plain.engine")
    streamed = build(export("bfloat16"), tmp_path / "s.engine", options=BuildOptions(weight_streaming=True))
    assert plain.path.read_bytes() != streamed.path.read_bytes()


def test_too_small_workspace_is_named(export: Export, build: Build, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no tactics.*Perhaps --workspace 1 MB is too small"):
        build(export("float32"), tmp_path / "gpt.engine", options=BuildOptions(workspace=1))
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_for_a_gpu_without_it(export: Export, build: Build, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no bfloat16. Export with --dtype float16"):
        build(export("bfloat16"), tmp_path / "gpt.engine", targets=("7.5",))
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_from_0_up(export: Export, build: Build, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    build(export("bfloat16"), tmp_path / "gpt.engine", progress=lambda phase, done: seen.append((phase, done)))
    amounts = [done for _, done in seen]
    assert amounts[0] == 0
    assert 0.8 < max(amounts) <= 1  # 5 of 6 phases are reported
    assert len({phase for phase, _ in seen}) > 3


def test_ctrl_c_stops_the_build_and_leaves_nothing(export: Export, build: Build, tmp_path: Path) -> None:
    """A real signal, while TensorRT holds its thread; its next step is the last."""
    sent: list[str] = []

    def interrupt(phase: str, _done: float) -> None:
        if not sent:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the main thread hears it, however busy the machine is
        sent.append(phase)

    with pytest.raises(KeyboardInterrupt):
        build(export("bfloat16"), tmp_path / "gpt.engine", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    whole: list[str] = []
    build(export("bfloat16"), tmp_path / "gpt.engine", progress=lambda phase, _done: whole.append(phase))
    assert len(sent) < len(whole)  # it was cancelled, not waited for


def test_existing_engine_is_kept_unless_forced(engine: Path, export: Export, build: Build, tmp_path: Path) -> None:
    sidecar = tmp_path / "gpt.engine.json"
    sidecar.write_text("mine")
    for force, message in ((False, "--force"), (True, "was not written by gptexport")):
        with pytest.raises(OutputExistsError, match=message):
            build(export("bfloat16"), tmp_path / "gpt.engine", force=force)
        assert sidecar.read_text() == "mine"
    sidecar.write_text('{"format": "gptexport-engine"}')
    with pytest.raises(OutputExistsError, match="--force"):
        build(export("bfloat16"), tmp_path / "gpt.engine")
    assert sidecar.read_text() == '{"format": "gptexport-engine"}'
    build(export("bfloat16"), tmp_path / "gpt.engine", force=True)
    assert (tmp_path / "gpt.engine").read_bytes() == engine.read_bytes()


def own_graph(path: Path, *nodes: onnx.NodeProto, ids: Any = TensorProto.INT64, dims: Any = ("B", "T", 7)) -> Path:
    """input_ids -> logits through `nodes`, as a user may have written it."""
    graph = helper.make_graph(
        list(nodes),
        "own",
        [helper.make_tensor_value_info("input_ids", ids, ["B", "T"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(dims))],
        [helper.make_tensor("wte", TensorProto.FLOAT, [9, 7], [0.5] * 63)],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), str(path))
    return path


def test_operator_that_tensorrt_lacks_is_named_with_its_node(build: Build, tmp_path: Path) -> None:
    model = own_graph(
        tmp_path / "own.onnx",
        helper.make_node("Gather", ["wte", "input_ids"], ["x"], name="embed"),
        helper.make_node("Frobnicate", ["x"], ["y"], name="blocks.0.frob", domain="com.example"),
        helper.make_node("Unfrobnicate", ["y"], ["logits"], name="blocks.1.unfrob", domain="com.example"),
    )
    with pytest.raises(EngineError) as caught:
        build(model, tmp_path / "own.engine")
    assert "Frobnicate node 'blocks.0.frob': TensorRT has no such operator" in str(caught.value)
    assert "Unfrobnicate node 'blocks.1.unfrob'" in str(caught.value)  # every one, not the first
    assert [path.name for path in tmp_path.iterdir()] == ["own.onnx"]


def test_graph_for_the_cpu_is_refused_with_what_to_do(ckpt: Path, build: Build, tmp_path: Path) -> None:
    bundle = export_onnx(load_checkpoint(str(ckpt)), tmp_path / "cpu", target="cpu").path
    with pytest.raises(EngineError, match=r"(?s)no such operator.*export for the target p"):
        build(bundle, tmp_path / "gpt.engine")


@pytest.mark.parametrize("change", [{"ids": TensorProto.INT32}, {"dims": ("B", 1, 7)}, {"dims": ("B", "T", "V")}])
def test_other_interfaces_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model = own_graph(
        tmp_path / "own.onnx", helper.make_node("Gather", ["wte", "input_ids"], ["logits"], name="embed"), **change
    )
    with pytest.raises(EngineError, match=r"expected input_ids int64 \(B,T\) -> logits float32 \(B,T,V\)"):
        open_source(model)


def test_own_graph_without_a_block_size_builds(build: Build, tmp_path: Path) -> None:
    model = own_graph(tmp_path / "own.onnx", helper.make_node("Gather", ["wte", "input_ids"], ["logits"], name="embed"))
    info = build(model, tmp_path / "own.engine").info
    assert (info.info.block_size, info.info.vocab_size, info.dtype) == (None, 7, "float32")
    assert list(info.onnx) == ["own.onnx"]


def test_engine_is_no_source(engine: Path) -> None:
    with pytest.raises(ArtifactError, match="is an engine already"):
        open_source(engine)
