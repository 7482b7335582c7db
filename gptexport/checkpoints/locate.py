"""From what the user typed to a path: a file, a folder, or a model of the Hugging Face hub in its cache."""

import re
from collections.abc import Callable
from pathlib import Path

from gptexport.checkpoints.formats.huggingface_config import MAX_JSON
from gptexport.checkpoints.formats.huggingface_text import TEXT_FILES, find_tokenizer
from gptexport.errors import CheckpointError
from gptexport_runtime.files import read_small

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".onnx", ".gguf", ".engine", ".py")
_SMALL = ["config.json", *TEXT_FILES]
_SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
_BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def locate(source: str) -> Path:
    """An existing path; a hub id is looked up in the local cache first and downloaded if it is not there.

    Raises:
        CheckpointError: no such path, and no hub model either, or it cannot be reached.
    """
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user, a NUL
        raise CheckpointError(f"{source}: no such file or folder ({error}).") from error
    if looks_like_hub_id(source):
        return _from_hub(source)
    hint = (
        ""
        if path.suffix in _FILE_SUFFIXES
        else ". A model of the Hugging Face hub is named in full: openai-community/gpt2"
    )
    raise CheckpointError(f"{source}: no such file or folder{hint}.")


def looks_like_hub_id(source: str) -> bool:
    """`owner/name`, unless that reads as a path: a file's suffix, or a folder `owner` right here."""
    if not _HUB_ID.fullmatch(source) or source.endswith(_FILE_SUFFIXES):
        return False
    return not Path(source.partition("/")[0]).exists()


def _from_hub(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"{repo_id}: no such file or folder. If it is a model of the Hugging Face hub: "
            "downloading needs huggingface_hub: `pip install 'gptexport[hf]'`."
        ) from error

    def snapshot(patterns: list[str], *, local: bool) -> Path:
        # no subfolders: repositories keep other exports of the same model there
        found = snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=local)
        return Path(found)

    try:
        cached = snapshot(_SMALL + _SAFETENSORS + _BIN, local=True)
        if _has_weights(cached):
            return cached if find_tokenizer(cached) else _with_text(cached, lambda: snapshot(_SMALL, local=False))
    except (LocalEntryNotFoundError, ValueError, OSError):
        pass  # not cached, or only in part: fetch it
    try:
        folder = snapshot(_SMALL + _SAFETENSORS, local=False)
        return folder if _has_weights(folder) else snapshot(_SMALL + _BIN, local=False)
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library it uses
        detail = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CheckpointError(
            f"{repo_id}: no such file or folder, and no model of that name in the local Hugging Face cache or to be "
            f"had from the hub ({type(error).__name__}: {detail})."
        ) from error


def _with_text(cached: Path, fetch: Callable[[], Path]) -> Path:
    """A cached model and its tokenizer, which whoever cached the weights may not have asked for."""
    try:
        fetched = fetch()
    except Exception:  # offline, most often: what is cached is a whole model
        return cached
    return fetched if _has_weights(fetched) else cached  # else the repository has moved on


def _has_weights(folder: Path) -> bool:
    """config.json and all weights that it would be loaded from, as far as names tell."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / "model.safetensors").is_file() or (folder / "pytorch_model.bin").is_file():
        return True
    for index in folder.glob("*.index.json"):
        # shards come one by one: a partial cache has the index and not all of them
        text = read_small(index, MAX_JSON).decode("utf-8", "replace")
        if any(not (folder / shard).is_file() for shard in re.findall(r'"([^"/]+\.(?:safetensors|bin))"', text)):
            return False
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
