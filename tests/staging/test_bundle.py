"""A bundle is put in place in one step; --force replaces what gptexport wrote, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptexport.errors import OutputError, OutputExistsError
from gptexport.staging import check_output, staged, steps, watched, write_file
from gptexport_runtime.contract.names import FORMAT
from tests.support.outputs import BUNDLE, listing, read_bundle, write_bundle


def test_only_what_gptexport_wrote_is_ever_replaced(tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "notes"
    folder.mkdir()
    (folder / "me.jpg").touch()
    file.touch()
    for path, message in [(folder, "other things in it"), (file, "is a file")]:
        with pytest.raises(OutputExistsError, match=message):
            check_output(path, force=True)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", force=False)


def test_the_new_bundle_keeps_what_others_had_put_beside_the_old(tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    write_bundle(out, "old")
    (out / "ckpt.pt").write_text("the only checkpoint")
    (out / "sub").mkdir()
    (out / "sub" / "weights.data").write_text("another's")
    os.mkfifo(out / "pipe")
    write_bundle(out, "new", force=True)
    assert read_bundle(out) == "new"
    assert (out / "ckpt.pt").read_text() == "the only checkpoint"
    assert (out / "sub" / "weights.data").read_text() == "another's"
    assert listing(tmp_path) == [
        "gpt",
        *(f"gpt/{name}" for name in ("ckpt.pt", "gptexport.json", "logits.onnx", "pipe", "sub", "sub/weights.data")),
        "gpt/weights.data",
    ]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "genai_config.json"])
def test_a_strangers_file_that_is_named_as_one_for_other_programs_is_kept(tmp_path: Path, name: str) -> None:
    """They are ours beside genai.onnx alone, and are then replaced; a new one never takes a stranger's place."""
    out = tmp_path / "gpt"
    write_bundle(out, "old")
    (out / name).write_text("another's")
    write_bundle(out, "new", force=True)
    assert (read_bundle(out), (out / name).read_text()) == ("new", "another's")

    def with_genai(tag: str) -> None:
        with staged(out, force=True) as folder:
            for file in ("weights.data", "logits.onnx", "genai.onnx", name):
                write_file(folder / file, tag.encode())
            write_file(folder / "gptexport.json", json.dumps({"format": FORMAT, "tag": tag}).encode())

    with pytest.raises(OutputExistsError, match=f"{name} was not written by gptexport, and the new bundle has a file"):
        with_genai("genai")
    assert (read_bundle(out), (out / name).read_text()) == ("new", "another's")
    assert listing(tmp_path) == ["gpt", *(f"gpt/{path.name}" for path in sorted(out.iterdir()))]
    (out / name).unlink()
    with_genai("genai")
    with_genai("again")
    assert (out / name).read_text() == "again"
    write_bundle(out, "plain", force=True)
    assert read_bundle(out) == "plain" and not (out / name).exists() and not (out / "genai.onnx").exists()


def test_what_appears_in_the_old_bundle_while_it_is_replaced_is_kept_too(tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    write_bundle(out, "old")

    def appear(step: str, _path: Path) -> None:
        if step == "exchange":
            (out / "late.txt").write_text("late")

    with watched(appear):
        write_bundle(out, "new", force=True)
    assert (out / "late.txt").read_text() == "late"
    assert read_bundle(out) == "new"


def test_a_folder_with_the_name_of_a_bundles_file_is_not_deleted(tmp_path: Path) -> None:
    write_bundle(tmp_path / "gpt", "old")
    (tmp_path / "gpt" / "tokenizer.json").mkdir()
    with pytest.raises(OutputExistsError, match=r"tokenizer\.json is not a file"):
        check_output(tmp_path / "gpt", force=True)


def test_strangers_that_cannot_have_a_second_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpt"
    write_bundle(out, "old")
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr(steps, "link", lambda *_: False)
    with pytest.raises(OutputError, match=r"notes\.txt was not written by gptexport"):
        write_bundle(out, "new", force=True)
    assert (read_bundle(out), (out / "notes.txt").read_text()) == ("old", "mine")


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_in_the_meantime_is_not_replaced(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "gpt"
    with pytest.raises(OutputExistsError, match="other things in it"), staged(out, force=force) as folder:
        write_file(folder / "gptexport.json", b"{}")
        out.mkdir()
        (out / "thesis.txt").write_text("all of it")
    assert (out / "thesis.txt").read_text() == "all of it"
    assert listing(tmp_path) == ["gpt", "gpt/thesis.txt"]


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_folder_that_appears_in_the_meantime_stays(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "gpt"

    def appear(step: str, path: Path) -> None:
        if step == "rename" and not out.exists():
            out.mkdir()

    with pytest.raises(OutputExistsError, match="appeared in the meantime"), watched(appear):
        write_bundle(out, "new", force)
    assert listing(tmp_path) == ["gpt"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EBUSY, "cannot be replaced in one step"),
        (errno.EXDEV, "cannot be replaced in one step"),
        (errno.EIO, "gpt failed: Input/output error"),
    ],
)
def test_a_folder_that_cannot_be_exchanged_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """As a mount point cannot; a disk that fails is no mount point."""
    out = tmp_path / "gpt"
    write_bundle(out, "old")

    def fail(*_: Path) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(steps, "exchange", fail)
    with pytest.raises(OutputError, match=message):
        write_bundle(out, "new", force=True)
    assert read_bundle(out) == "old"


def test_what_appears_in_the_old_bundle_under_a_name_that_is_taken_is_told_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    write_bundle(out, "old")

    def appear(step: str, _path: Path) -> None:
        if step == "exchange":
            (out / "late.txt").write_text("of the old")
            (swap,) = tmp_path.glob(".gptexport-*.tmp/swap/gpt")
            (swap / "late.txt").write_text("of the new")

    told = "all is written, but what appeared in the old one meanwhile is now in"
    with pytest.raises(OutputError, match=told), watched(appear):
        write_bundle(out, "new", force=True)
    assert (read_bundle(out), (out / "late.txt").read_text()) == ("new", "of the new")
    (kept,) = tmp_path.glob(".gptexport-*.tmp/swap/gpt/late.txt")
    assert kept.read_text() == "of the old"


def test_an_interrupt_says_whether_the_output_was_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as early, staged(tmp_path / "early", force=False):
        raise KeyboardInterrupt

    def interrupt(step: str, _path: Path) -> None:
        if step == "remove folder" and (tmp_path / "late").is_dir():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="late was written before") as late, watched(interrupt):
        write_bundle(tmp_path / "late", "new")
    assert (early.value.args, late.value.__cause__) == ((), None)
    assert read_bundle(tmp_path / "late") == "new" and not (tmp_path / "early").exists()


def test_an_error_that_is_not_the_systems_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^a library's own$"), staged(tmp_path / "gpt", force=False):
        raise OSError("a library's own")


def test_a_name_may_have_200_bytes(tmp_path: Path) -> None:
    check_output(tmp_path / ("ö" * 100), force=False)
    with pytest.raises(OutputError, match="too long a name; expected at most 200 bytes"):
        check_output(tmp_path / ("ö" * 100 + "x"), force=False)


def test_a_working_folder_that_is_gone_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "gpt", "old")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    check_output(tmp_path / "gpt", force=True)


def test_of_two_exports_without_force_the_second_fails(tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    with pytest.raises(OutputExistsError, match="--force"), staged(out, force=False) as folder:
        write_file(folder / "gptexport.json", b"{}")
        write_bundle(out, "first")
    assert read_bundle(out) == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["gpt"]


def test_the_working_folder_is_filled_if_it_is_empty_and_never_pulled_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    write_bundle(Path(), "new")
    assert (read_bundle(tmp_path), tmp_path.stat().st_ino) == ("new", inode)
    with pytest.raises(OutputExistsError, match="the folder that you are in"):
        check_output(Path(), force=True)
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path / "notes")
    with pytest.raises(OutputExistsError, match="or holds it"):
        check_output(tmp_path, force=True)


def test_an_empty_folder_keeps_its_place_and_its_permissions(tmp_path: Path) -> None:
    out = tmp_path / "gpt"
    out.mkdir(mode=0o700)
    inode = out.stat().st_ino
    write_bundle(out, "new")
    assert (read_bundle(out), out.stat().st_ino, out.stat().st_mode & 0o777) == ("new", inode, 0o700)


def test_a_file_that_appears_in_the_empty_folder_stays_and_the_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="has appeared in the meantime"), staged(tmp_path, force=False) as made:
        for name in ("weights.data", "logits.onnx", "gptexport.json"):
            write_file(made / name, b"new")
        (tmp_path / "logits.onnx").write_text("mine")
    assert listing(tmp_path) == ["logits.onnx"]
    assert (tmp_path / "logits.onnx").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize("old", [False, True])
def test_a_mount_point_is_filled_or_refused(tmp_path: Path, old: bool) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    if old:
        write_bundle(tmp_path / "disk", "old")
    program = """if True:
        from pathlib import Path
        from tests.support.outputs import write_bundle
        write_bundle(Path("out"), "new", True)"""
    script = f"mount --bind disk out && '{sys.executable}' -c '{program}'"
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True
    )
    if "unshare failed" in ran.stderr or "permission denied" in ran.stderr.lower():
        pytest.skip(f"no mounts here: {ran.stderr}")
    assert read_bundle(tmp_path / "disk") == ("old" if old else "new"), ran.stderr
    assert ("cannot be replaced in one step" in ran.stderr) == old
    assert not [name for name in listing(tmp_path) if ".gptexport-" in name]


def test_a_link_to_a_bundle_stays_one_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    write_bundle(tmp_path / "disk" / "gpt", "old")
    (tmp_path / "gpt").symlink_to("disk/gpt")
    write_bundle(tmp_path / "gpt", "new", force=True)
    assert (tmp_path / "gpt").readlink() == Path("disk/gpt")
    assert read_bundle(tmp_path / "disk" / "gpt") == "new"
    (tmp_path / "nowhere").symlink_to("gone")
    with pytest.raises(OutputExistsError, match="leads nowhere"):
        check_output(tmp_path / "nowhere", force=True)


@pytest.mark.parametrize("name", ["..", "new/..", "bundle/.."])
def test_no_output_is_named_by_the_way_up(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="is no name for an output"):
        check_output(tmp_path / name, force=True)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 250, "too long a name"), ("a\0b", "no name"), ("caf\udce9", "not UTF-8"), ("file/gpt", "is not a folder")],
)
def test_names_that_nothing_can_have_are_refused_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name, force=False)


def test_folders_above_are_made_and_taken_back(tmp_path: Path) -> None:
    write_bundle(tmp_path / "deep" / "er" / "gpt", "new")
    assert read_bundle(tmp_path / "deep" / "er" / "gpt") == "new"

    def fail(step: str, path: Path) -> None:
        if step == "rename" and path.name == "gpt":
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"), watched(fail):
        write_bundle(tmp_path / "other" / "way" / "gpt", "new")
    assert not (tmp_path / "other").exists()


def test_a_bundle_inside_what_it_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "model.safetensors").touch()
    write_bundle(tmp_path / "ckpt" / "gpt", "new")
    assert BUNDLE.read(tmp_path / "ckpt" / "gpt") == "new"
