"""Small outputs of every kind, what a reader finds of them, and ways to stop the writing of one at any step."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from gptexport.staging import data_file, replace_file, staged, watched, write_file
from gptexport_runtime.contract.engine import FORMAT as ENGINE_FORMAT
from gptexport_runtime.contract.engine import sidecar_path
from gptexport_runtime.contract.names import FORMAT, META_VOCAB_SIZE

ABSENT = "absent"
Write = Callable[[Path, str, bool], None]
Read = Callable[[Path], str]


@dataclass(frozen=True)
class Kind:
    """Of outputs: `write(out, tag, force)` makes one, `read(out)` says whose it is, "absent", or that it is torn."""

    name: str
    write: Write
    read: Read


def write_bundle(out: Path, tag: str, force: bool = False) -> None:
    with staged(out, force=force) as folder:
        for name in ("weights.data", "logits.onnx"):
            write_file(folder / name, tag.encode())
        write_file(folder / "gptexport.json", json.dumps({"format": FORMAT, "tag": tag}).encode())


def read_bundle(out: Path) -> str:
    if not (out / "gptexport.json").is_file():
        return ABSENT
    tag = str(json.loads((out / "gptexport.json").read_bytes())["tag"])
    others = {(out / name).read_text() for name in ("weights.data", "logits.onnx")}
    return tag if others == {tag} else f"torn: {tag} {others}"


def write_graph(out: Path, tag: str, force: bool = False, *, inline: bool = False) -> None:
    with staged(out, force=force) as folder:
        _write_graph(folder / out.name, tag, inline)


def write_inline(out: Path, tag: str, force: bool = False) -> None:
    write_graph(out, tag, force, inline=True)


def _write_graph(path: Path, tag: str, inline: bool) -> None:
    weights = np.frombuffer(hashlib.sha256(tag.encode()).digest(), np.uint8)
    tensor = onnx.numpy_helper.from_array(weights, "w")
    if not inline:
        write_file(data_file(path), weights.tobytes())
        onnx.external_data_helper.set_external_data(tensor, data_file(path).name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    value = helper.make_tensor_value_info("w", TensorProto.UINT8, [32])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], tag, [], [value], [tensor])
    model = helper.make_model(graph)
    model.metadata_props.add(key=META_VOCAB_SIZE, value="32")
    write_file(path, model.SerializeToString())


def read_graph(out: Path) -> str:
    if not out.exists():
        return ABSENT
    model = onnx.load(str(out), load_external_data=False)
    (tensor,) = model.graph.initializer
    place = [entry.value for entry in tensor.external_data if entry.key == "location"]
    found = (out.parent / place[0]).read_bytes() if place else tensor.raw_data
    tag: str = model.graph.name
    return tag if found == hashlib.sha256(tag.encode()).digest() else f"torn: {tag}"


def write_engine(out: Path, tag: str, force: bool = False) -> None:
    with staged(out, force=force) as folder:
        write_file(folder / out.name, tag.encode())
        write_file(folder / sidecar_path(out).name, _sidecar(tag))


def _sidecar(tag: str) -> bytes:
    return json.dumps(
        {"format": ENGINE_FORMAT, "engine": {"sha256": hashlib.sha256(tag.encode()).hexdigest()}}
    ).encode()


def read_engine(out: Path) -> str:
    """As a session does: the sidecar, or what it says under `before`, must be of this very engine."""
    if not out.exists():
        return ABSENT
    tag = out.read_text()
    sidecar = json.loads(sidecar_path(out).read_bytes())
    said = {each["engine"]["sha256"] for each in (sidecar, sidecar.get("before")) if each}
    return tag if hashlib.sha256(tag.encode()).hexdigest() in said else f"torn: {tag}"


def write_text(out: Path, tag: str, force: bool = False) -> None:
    replace_file(out, tag.encode())


def read_text(out: Path) -> str:
    return out.read_text() if out.exists() else ABSENT


BUNDLE = Kind("gpt", write_bundle, read_bundle)
GRAPH = Kind("gpt.onnx", write_graph, read_graph)
INLINE = Kind("gpt.onnx", write_inline, read_graph)
ENGINE = Kind("gpt.engine", write_engine, read_engine)
TEXT = Kind("note.json", write_text, read_text)


def steps_of(write: Callable[[], None]) -> list[str]:
    """What it does to the disk, step by step."""
    steps: list[str] = []
    with watched(lambda step, path: steps.append(f"{step} {path.name}")):
        write()
    return steps


def stopped_at(at: int, write: Callable[[], None], stop: Callable[[], None], *, ever_after: bool = False) -> None:
    """Run until before step number `at`, from 0; `stop` raises, or ends the process."""
    count = 0

    def watch(_step: str, _path: Path) -> None:
        nonlocal count
        count += 1
        if count == at + 1 or (ever_after and count > at):
            stop()

    with watched(watch):
        write()


def killed_at(at: int, write: Callable[[], None]) -> bool:
    """In a child of its own, which SIGKILL ends before that step. Returns: was there such a step?"""
    child = os.fork()
    if child == 0:
        try:
            stopped_at(at, write, lambda: os.kill(os.getpid(), signal.SIGKILL))
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"the writer failed: status {status}"
    return False


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
