"""Opening a .pt: nothing in it runs, and damage is said plainly."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from gptexport.checkpoints import describe_checkpoint, load_checkpoint
from gptexport.errors import CheckpointError, UnknownCheckpointError, UnsafeCheckpointError
from tests.support.builders import Builder, random_weights, tiny_build_nanogpt, tiny_huggingface, tiny_nanogpt


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


class Exec:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("evil", "name"), [(Touch, "posix.mkdir"), (Exec, "exec")])
def test_a_malicious_checkpoint_runs_nothing_and_is_reported(
    tmp_path: Path, evil: type[Touch | Exec], name: str, legacy: bool
) -> None:
    target = tmp_path / "created"
    path = tiny_nanogpt(tmp_path / "ckpt.pt", extra={"config": evil(target)}, legacy=legacy)
    with pytest.raises(UnsafeCheckpointError, match=rf"nothing was run[^$]*{name}"):
        load_checkpoint(str(path))
    info = describe_checkpoint(str(path))
    assert not info.readable
    assert len(info.unsafe_globals) == 1 and info.unsafe_globals[0].endswith(name)
    assert not target.exists()


def test_the_malicious_file_of_these_tests_does_work(tmp_path: Path) -> None:
    """Loaded unsafely it creates the file: the tests above would pass on a harmless one."""
    target = tmp_path / "created"
    path = tiny_nanogpt(tmp_path / "ckpt.pt", extra={"config": Touch(target)})
    torch.load(path, weights_only=False)
    assert target.exists()


def test_all_unsafe_globals_are_listed(tmp_path: Path) -> None:
    extra = {"config": [Touch(tmp_path / "a"), Exec(tmp_path / "b"), Path("c")]}
    path = tiny_nanogpt(tmp_path / "ckpt.pt", extra=extra)
    info = describe_checkpoint(str(path))
    assert {name.rpartition(".")[2] for name in info.unsafe_globals} == {"exec", "mkdir", type(Path()).__name__}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_pickle_protocols_are_never_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "created"
    path = tmp_path / "ckpt.pt"
    torch.save({"model": random_weights(), "model_args": Touch(target)}, path, pickle_protocol=protocol)
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(str(path))
    assert describe_checkpoint(str(path)).format == "unsafe"
    assert not target.exists()


def test_a_config_class_that_runs_code_is_not_run(tmp_path: Path) -> None:
    """A global may call itself GPTConfig: it is not imported either."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'created')!r}, 'w')\nclass GPTConfig: pass\n")
    path = tiny_build_nanogpt(tmp_path / "model.pt")
    data = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry).replace(b"c__main__\nGPTConfig", b"cevil_module\nGPTConfig"))
    path.write_bytes(data.getvalue())
    assert any("evil_module.GPTConfig" in note for note in load_checkpoint(str(path)).notes)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_config_class_of_another_name_is_refused(tmp_path: Path, legacy: bool) -> None:
    path = tiny_build_nanogpt(tmp_path / "model.pt", class_name="ModelArgs", legacy=legacy)
    with pytest.raises(UnsafeCheckpointError, match=r"__main__\.ModelArgs"):
        load_checkpoint(str(path))


def test_a_malicious_bin_in_a_hugging_face_folder(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf", safetensors=False)
    torch.save({"wte.weight": Touch(tmp_path / "created")}, path / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match="mkdir"):
        load_checkpoint(str(path))
    assert describe_checkpoint(str(path)).format == "unsafe"
    assert not (tmp_path / "created").exists()


def test_a_plain_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Touch(tmp_path / "created")))
    with pytest.raises(UnknownCheckpointError, match="a Python pickle"):
        load_checkpoint(str(path))
    assert describe_checkpoint(str(path)).format == "pickle"
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("tiny", [tiny_nanogpt, tiny_build_nanogpt])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.1, 0.01])
def test_truncated_files_say_so(tmp_path: Path, tiny: Builder, legacy: bool, keep: float) -> None:
    path = tiny(tmp_path / "ckpt.pt", legacy=legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    for call in (load_checkpoint, describe_checkpoint):
        with pytest.raises(CheckpointError, match=rf"{int(len(data) * keep):,} bytes\) is truncated or corrupt"):
            call(str(path))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("legacy", [False, True])
def test_garbage_in_the_pickle_is_a_checkpoint_error(tmp_path: Path, seed: int, legacy: bool) -> None:
    """Whatever the bytes lead to, the user sees one of our errors."""
    path = tiny_build_nanogpt(tmp_path / "ckpt.pt", legacy=legacy)
    data = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    start = 200 if legacy else data.index(b"data.pkl") + 60
    for position in torch.randint(start, start + 2500, (25,), generator=generator).tolist():
        data[position] = int(torch.randint(0, 256, (1,), generator=generator))
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(str(path))


def zipped_again(path: Path, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """As macOS's Finder and many a tool write it: unpacked, and packed again."""
    made = path.with_name("again.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return made


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_an_archive_that_was_packed_again_is_read_or_refused_and_never_taken_for_weights(
    tmp_path: Path, method: int
) -> None:
    """Compressed bytes are no weights. torch maps only what is stored page by page; others it reads."""
    plain = tiny_nanogpt(tmp_path / "ckpt.pt")
    expected = load_checkpoint(str(plain)).model.state_dict()
    actual = load_checkpoint(str(zipped_again(plain, method=method))).model.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_a_bin_that_was_packed_again_in_a_hugging_face_folder(tmp_path: Path) -> None:
    path = tiny_huggingface(tmp_path / "hf", safetensors=False)
    expected = load_checkpoint(str(path)).model.state_dict()
    zipped_again(path / "pytorch_model.bin").replace(path / "pytorch_model.bin")
    actual = load_checkpoint(str(path)).model.state_dict()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_an_archive_that_unpacks_to_more_than_weights_do_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"0" * (96 << 20))
    with pytest.raises(CheckpointError, match=r"compressed archive of [\d,]+ bytes that says it holds 100,663,296"):
        load_checkpoint(str(path))


def test_a_weight_of_more_numbers_than_are_stored_is_refused_before_they_are_made(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(10**9, 10**6)
    path = tiny_nanogpt(tmp_path / "ckpt.pt", weights={"transformer.wte.weight": wide, "lm_head.weight": wide})
    problems = describe_checkpoint(str(path)).problems
    assert any("not stored" in p and "1,000,000,000,000,000 numbers in 4 bytes" in p for p in problems)
