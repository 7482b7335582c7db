"""Two files that belong together: a graph with its data, an engine with its sidecar.

No system renames two files at once, so one rename must be the switch, with a right pair on both sides of it:

- A graph names the file that holds its data. The new data get a name of their own, and the new graph, which names it,
  takes the old one's place: that is the switch. Then the data move to the usual name, and the graph once more.
- A sidecar says which engine it is of, by hash. The new sidecar says what the old one said too, under `before`; the
  new engine takes the old one's place: that is the switch. Then the sidecar forgets the old engine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.errors import OutputExistsError
from gptexport.staging import steps
from gptexport.staging.files import confirm, put_files
from gptexport.staging.stage import TOKEN, Stage, identity, is_same
from gptexport_runtime.artifact import reads_from
from gptexport_runtime.contract.engine import BEFORE, sidecar_path
from gptexport_runtime.contract.engine import FORMAT as ENGINE_FORMAT
from gptexport_runtime.contract.names import META_VOCAB_SIZE

GRAPH, ENGINE, ASIDE, DROP = "graph", "engine", "aside", "drop.json"  # in a stage
TAIL = 1 << 16  # metadata are the last thing in a graph's file
SIDECAR_BYTES = 64 << 20
DATA_OF = re.compile(rf"(.+\.onnx)(?:\.{TOKEN})?\.data")


def data_file(graph: Path) -> Path:
    """Where a graph outside a bundle keeps weights that are too large to go inside."""
    return graph.with_name(graph.name + ".data")


def check_graph(out: Path, *, force: bool) -> None:
    """Refuse a place where no graph may be written.

    Raises:
        OutputExistsError: it is there, and `force` is not given or it is not gptexport's to replace.
    """
    _check_file(out)
    data = data_file(out)
    if not os.path.lexists(out):
        if os.path.lexists(data):
            raise OutputExistsError(f"{data} is there without its graph. Move it away, or choose another place.")
        return
    if not force:
        raise OutputExistsError(f"{out} exists already. Pass --force to replace it, or choose another place.")
    if not _is_our_graph(out):
        raise OutputExistsError(f"{out} was not written by gptexport, which never replaces it. Choose another place.")
    if os.path.lexists(data) and not (data.is_file() and reads_from(out, data.name)):
        raise OutputExistsError(f"{data} is there, and {out.name} does not read it. Move it away.")


def check_engine(out: Path, *, force: bool) -> None:
    """Refuse a place where no engine may be written.

    Raises:
        OutputExistsError: it is there, and `force` is not given or it is not gptexport's to replace.
    """
    sidecar = sidecar_path(out)
    _check_file(out)
    _check_file(sidecar)
    there = [path for path in (out, sidecar) if os.path.lexists(path)]
    if there and not force:
        raise OutputExistsError(f"{there[0]} exists already. Pass --force to replace it, or choose another place.")
    if there and _described(sidecar) is None:
        raise OutputExistsError(
            f"{there[0]} was not written by gptexport, which never replaces it: {sidecar.name} is not its sidecar. "
            "Choose another place."
        )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; expected a file name, or a folder name without {path.suffix}.")
    if path.is_symlink():
        raise OutputExistsError(f"{path} is a link. Name the file that it leads to, or choose another place.")
    if os.path.lexists(path) and not path.is_file():
        raise OutputExistsError(f"{path} is not a regular file. Choose another place.")


def put_graph(stage: Stage, made: Path, out: Path, *, force: bool) -> None:
    """Put the graph, and its data if it has some, in place of `out`.

    Raises:
        OutputExistsError: something has appeared there in the meantime.
    """
    data = data_file(out)
    has_data = (made / data.name).exists()
    check_graph(out, force=force)
    if not out.exists():
        put_files(stage, made, out.parent, [data.name, out.name] if has_data else [out.name])
        return
    stage.note(DROP, {path.name: path for path in _data_beside(out) if reads_from(out, path.name)})
    ready = stage.path / GRAPH
    steps.rename_new(made, ready)
    if has_data:
        interim, aside = _interim(stage, out), stage.folder(ASIDE) / out.name
        steps.write_file(aside, _with_data_at(ready / out.name, interim.name))
        steps.rename_new(ready / data.name, interim)
        steps.sync_folder(out.parent)
        steps.replace(aside, out)
    else:
        steps.replace(ready / out.name, out)
    confirm(out.parent)
    settle_graph(stage)


def settle_graph(stage: Stage) -> None:
    """Before the switch go back, after it go on to the end; and remove data that the graph does not name any more."""
    old = stage.noted(DROP)
    for interim in sorted(stage.home.glob(f"*.{stage.token}.data")):
        out = stage.home / interim.name.removesuffix(f".{stage.token}.data")
        if reads_from(out, interim.name):
            _move_home(stage, out, old)
        if not reads_from(out, interim.name):
            steps.remove(interim)
    for name, who in old.items():
        of, path = DATA_OF.fullmatch(name), stage.home / name
        if of and identity(path) == who and not reads_from(stage.home / of[1], name):
            steps.remove(path)
    for name in (GRAPH, ASIDE, DROP):
        stage.clear(name)


def _move_home(stage: Stage, out: Path, old: Mapping[str, list[int] | None]) -> None:
    """Give the data their usual name as well, and then to the graph; where files have one name only, they stay."""
    interim, data, graph = _interim(stage, out), data_file(out), stage.path / GRAPH / out.name
    if not is_same(interim, data) and identity(data) == old.get(data.name) and graph.exists():
        twin = stage.folder(ASIDE) / data.name
        stage.clear(f"{ASIDE}/{data.name}")
        if steps.link(interim, twin):
            steps.replace(twin, data)
            steps.sync_folder(stage.home)
    if is_same(interim, data) and graph.exists():
        steps.replace(graph, out)
        steps.sync_folder(stage.home)


def put_engine(stage: Stage, made: Path, out: Path, *, force: bool) -> None:
    """Put the engine and its sidecar in place of `out`.

    Raises:
        OutputExistsError: something has appeared there in the meantime.
    """
    sidecar = sidecar_path(out)
    check_engine(out, force=force)
    old = _described(sidecar)
    if old is None:
        put_files(stage, made, out.parent, [sidecar.name, out.name])
        return
    ready = stage.path / ENGINE
    steps.rename_new(made, ready)
    both = {**json.loads((ready / sidecar.name).read_bytes()), BEFORE: _alone(old)}
    aside = stage.folder(ASIDE) / sidecar.name
    steps.write_file(aside, json.dumps(both).encode())
    steps.replace(aside, sidecar)
    confirm(out.parent)
    settle_engine(stage)


def settle_engine(stage: Stage) -> None:
    """Once the sidecar knows the new engine, go on to the end."""
    for sidecar in stage.found(ENGINE):
        own, there = _described(sidecar), _described(stage.home / sidecar.name)
        if own is None or there is None or _alone(there) != own:
            continue
        engine = sidecar.with_suffix("")
        if engine.exists():
            steps.replace(engine, stage.home / engine.name)
            steps.sync_folder(stage.home)
        steps.replace(sidecar, stage.home / sidecar.name)
        steps.sync_folder(stage.home)
    for name in (ENGINE, ASIDE):
        stage.clear(name)


def _interim(stage: Stage, out: Path) -> Path:
    """Where the new data are while the old graph still has the usual name."""
    return out.with_name(f"{out.name}.{stage.token}.data")


def _data_beside(out: Path) -> list[Path]:
    """What the graph may keep its data in."""
    return [path for path in sorted(out.parent.iterdir()) if (of := DATA_OF.fullmatch(path.name)) and of[1] == out.name]


def _with_data_at(graph: Path, name: str) -> bytes:
    """The graph, reading its data from a file of another name."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _is_our_graph(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return META_VOCAB_SIZE.encode() in file.read()


def _described(sidecar: Path) -> dict[str, Any] | None:
    """What a sidecar says; None: it is none of ours."""
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > SIDECAR_BYTES:
            return None
        found = json.loads(sidecar.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("format") == ENGINE_FORMAT else None


def _alone(described: dict[str, Any]) -> dict[str, Any]:
    """The sidecar of the new engine alone."""
    return {name: value for name, value in described.items() if name != BEFORE}
