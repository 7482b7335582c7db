"""What a dead process left is told from what a living one works in, and from what somebody forged."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from gptexport.staging import staged, sweep, watched, write_file
from gptexport.staging.files import PLAN, PUT
from gptexport.staging.stage import LOCK, NAME, identity, one_at_a_time
from tests.support.outputs import listing, read_bundle, write_bundle

FORGED = ".gptexport-abcdefgh.tmp"


def test_the_stage_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "gpt", force=False) as folder:
        write_file(folder / "gptexport.json", b"{}")
        sweep(tmp_path)
        write_bundle(tmp_path / "other", "new")
        assert (folder / "gptexport.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt", "other"]


def test_its_name_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with staged(tmp_path / "gpt", force=True) as folder:
            names.add(folder.parents[1].name)
            write_file(folder / "gptexport.json", b"{}")
            assert folder.parents[1].stat().st_mode & 0o077 == 0, "nobody else may write into it"
    assert len(names) == 20
    assert all(NAME.fullmatch(name) for name in names)


def test_an_empty_stage_is_swept(tmp_path: Path) -> None:
    (tmp_path / FORGED).mkdir()
    sweep(tmp_path)
    assert listing(tmp_path) == []


def forge(home: Path) -> Path:
    stage = home / FORGED
    stage.mkdir()
    (stage / LOCK).touch()
    return stage


def test_a_forged_stage_deletes_nothing_outside_itself(tmp_path: Path) -> None:
    """It may come in an archive that was unpacked here."""
    for name in ("thesis.txt", "gpt.onnx", "gpt.onnx.data", "weights.data"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("precious")
    before = listing(tmp_path)
    stage = forge(tmp_path)
    for name in (PUT, "old", "swap", "graph", "engine", "aside", "new", "one"):
        (stage / name / "folder").mkdir(parents=True)
        (stage / name / "thesis.txt").write_text("forged")
        (stage / name / "gpt.onnx").write_text("forged")
        (stage / name / "folder" / "gptexport.json").write_text("{}")
    plan = {name: [1, 8, 0] for name in ("thesis.txt", "gpt.onnx.data", "../x", "weights.data")}
    (stage / PLAN).write_text(json.dumps(plan))
    (stage / "drop.json").write_text(json.dumps(plan))
    sweep(tmp_path)
    sweep(tmp_path)
    assert [name for name in listing(tmp_path) if ".gptexport-" not in name] == before
    assert {path.read_text() for path in tmp_path.glob("*.*") if path.is_file()} == {"precious"}
    assert (tmp_path / "folder" / "notes.txt").read_text() == "precious"


def test_a_strangers_file_whose_name_is_taken_stays_in_the_stage(tmp_path: Path) -> None:
    """Of the old bundle of a run that was killed; what has a place beside goes there."""
    stage, out = forge(tmp_path), tmp_path / "gpt"
    for folder, text in ((stage / "old" / "gpt", "old"), (out, "new")):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text(text)
    (stage / "old" / "gpt" / "free.txt").write_text("old")
    sweep(tmp_path)
    assert (out / "notes.txt").read_text() == "new"
    assert (stage / "old" / "gpt" / "notes.txt").read_text() == "old"
    assert (out / "free.txt").read_text() == "old"


def test_a_forged_plan_leads_nowhere_outside(tmp_path: Path) -> None:
    """Though it knows the files' identities; nor is it followed where it is no plan."""
    home, outside = tmp_path / "home", tmp_path / "precious"
    home.mkdir()
    outside.write_text("precious")
    stage = forge(home)
    (stage / PUT).mkdir()
    (stage / PUT / "waiting").touch()
    for plan in ({"../precious": identity(outside), str(outside): identity(outside), "waiting": [1, 8, 0]}, [1], "x"):
        (stage / PLAN).write_text(json.dumps(plan))
        sweep(home)
        assert outside.read_text() == "precious"
        (stage / PUT).mkdir(parents=True, exist_ok=True)
        (stage / LOCK).touch()
    sweep(home)
    assert listing(home) == []


def test_a_stage_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = forge(tmp_path)
    (stage / "new").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    sweep(tmp_path)
    assert (stage / "new").is_dir()
    monkeypatch.undo()
    sweep(tmp_path)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("step", ["make lock", "lock"])
def test_a_stage_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path, step: str) -> None:
    gone: list[Path] = []

    def take_away(found: str, path: Path) -> None:
        if found == step and not gone:
            gone.append(path)
            shutil.rmtree(path)

    with watched(take_away):
        write_bundle(tmp_path / "gpt", "new")
    assert len(gone) == 1 and read_bundle(tmp_path / "gpt") == "new"


def test_processes_take_turns_in_a_folder(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    released: list[float] = []

    def release() -> None:
        released.append(time.monotonic())
        os.close(other)

    timer = threading.Timer(0.2, release)
    timer.start()
    with one_at_a_time(tmp_path):
        entered = time.monotonic()
    timer.join()
    assert released[0] <= entered


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles as Linux shows them")
def test_no_handle_is_left_open(tmp_path: Path) -> None:
    write_bundle(tmp_path / "gpt", "old")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        forge(tmp_path)
        write_bundle(tmp_path / "gpt", "new", force=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_in_a_forged_stage_lead_nowhere(tmp_path: Path) -> None:
    home, precious = tmp_path / "home", tmp_path / "precious"
    home.mkdir()
    precious.mkdir()
    (precious / "weights.data").write_text("precious")
    (precious / LOCK).touch()
    stage = forge(home)
    for name in (PUT, "old", "swap", "graph", "new", "one"):
        (stage / name).symlink_to(precious)
    sweep(home)
    (home / ".gptexport-ijklmnop.tmp").symlink_to(precious)
    sweep(home)
    other = home / ".gptexport-qrstuvwx.tmp"
    other.mkdir()
    (other / LOCK).symlink_to(precious / "weights.data")
    os.mkfifo(home / ".gptexport-12345678.tmp")
    sweep(home)
    assert listing(precious) == [LOCK, "weights.data"]
    assert (precious / "weights.data").read_text() == "precious"


def test_a_fifo_for_a_lock_does_not_hang(tmp_path: Path) -> None:
    stage = tmp_path / FORGED
    stage.mkdir()
    os.mkfifo(stage / LOCK)
    sweep(tmp_path)
