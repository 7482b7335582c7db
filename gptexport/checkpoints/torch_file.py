"""Open what `torch.save` wrote without running anything that it carries.

Everything goes through torch's weights-only unpickler, the storages mapped from the file. The few globals that training
scripts are known to leave in a checkpoint (their `GPTConfig`, numpy's scalars) are replaced by inert stand-ins: what
the file names is neither imported nor called. Any other global is an UnsafeCheckpointError. There is no other way in.
"""

import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from gptexport.errors import CheckpointError, UnsafeCheckpointError

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save before 1.6, no zip
MAX_RATIO, SLACK = 8, 64 << 20  # a compressed archive may unpack to so many times its size, and these bytes
_NAMED_GLOBAL = re.compile(r"GLOBAL (\S+)")


class PickledConfig:
    """Stands in for a training script's pickled `GPTConfig`: holds the fields, runs nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        slots = state[1] if isinstance(state, tuple) and len(state) == 2 else None
        for part in (state[0] if slots is not None else state, slots):
            if isinstance(part, dict):
                self.__dict__.update({name: value for name, value in part.items() if isinstance(name, str)})


class _NumpyDtype:
    """Stands in for numpy.dtype: the name of the type and its byte order."""

    def __init__(self, code: Any = "", *args: Any) -> None:
        self.code = code if isinstance(code, str) and re.fullmatch(r"[fiu][1248]|b1", code) else ""
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


def _numpy_scalar(dtype: Any, data: Any = b"") -> int | float | bool:
    """Stands in for numpy's scalar constructor; returns a plain Python number."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(dtype, _NumpyDtype) or not dtype.code or not isinstance(raw, bytes):
        raise UnpicklingError("a numpy scalar that is not a plain number")
    value: int | float | bool = np.frombuffer(raw, dtype=np.dtype(dtype.order + dtype.code), count=1)[0].item()
    return value


_NUMPY_STAND_INS: dict[str, Any] = {
    "numpy.dtype": _NumpyDtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,  # numpy 1
    "numpy._core.multiarray.scalar": _numpy_scalar,  # numpy 2
}


class UnsafeGlobalsError(UnsafeCheckpointError):
    """The file names code; `names` are the globals."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(
            f"{path}: loading it would run code that it carries; nothing was run. Globals in its pickle:\n"
            + "".join(f"  {name}\n" for name in names)
            + "A checkpoint needs tensors, numbers, strings and containers of them alone. If it is yours, open it "
            "where it was trained and save those, for nanoGPT: "
            "torch.save({'model': model.state_dict(), 'model_args': model_args}, path)"
        )


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    payload: Any  # tensors are mapped from the file where its format allows
    config_globals: tuple[str, ...]  # pickled config classes that were read through a stand-in


def read_torch_file(path: Path) -> TorchFile:
    """Everything that the file holds, tensors on the CPU.

    Raises:
        UnsafeGlobalsError: the file names globals whose loading would run code. All of them are listed; of a file from
            before torch 1.6 the first.
        UnsafeCheckpointError: torch's safe unpickler does not take it, for whatever other reason.
        CheckpointError: the file is truncated or corrupt.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        stored = zipped and _is_stored(path)
        named = _globals(path) if zipped else ()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise corrupt(path, error) from error
    configs = tuple(name for name in named if _is_config(name))
    if unsafe := tuple(name for name in named if name not in _NUMPY_STAND_INS and name not in configs):
        raise UnsafeGlobalsError(path, unsafe)
    while True:
        try:
            return TorchFile(payload=_load(path, configs, mmap=stored), config_globals=configs)
        except UnpicklingError as error:
            found = _NAMED_GLOBAL.search(str(error))
            name = found.group(1) if found else None
            if name is None:
                raise _unreadable_pickle(path, error) from error
            # A file from before torch 1.6 is not listed in advance: its globals come one at a time.
            if not _is_config(name) or name in configs:
                raise UnsafeGlobalsError(path, (name,)) from error
            configs = (*configs, name)
        except Exception as error:  # torch raises whatever the damaged bytes led to
            raise corrupt(path, error) from error


def corrupt(path: Path, error: Exception | str) -> CheckpointError:
    """The error for a file whose bytes are not what its format says."""
    detail = str(error).strip().split("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{path}: the file ({path.stat().st_size:,} bytes) is truncated or corrupt ({detail}). "
        "Copy or download it again and compare the size with the original's."
    )


def _is_config(name: str) -> bool:
    return name.rpartition(".")[2] == "GPTConfig"


def _is_stored(path: Path) -> bool:
    """Whether every record lies in the archive as it is, as torch.save writes it, so that it can be mapped.

    One that was unpacked and zipped again holds compressed bytes, which are read instead.

    Raises:
        CheckpointError: it is no whole archive, or claims to unpack to more than weights ever do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise corrupt(path, error) from error
    if all(record.compress_type == zipfile.ZIP_STORED for record in records):
        return True
    held, size = sum(record.file_size for record in records), path.stat().st_size
    if held > MAX_RATIO * size + SLACK:
        raise CheckpointError(
            f"{path}: a compressed archive of {size:,} bytes that says it holds {held:,}; weights do not compress so "
            "far. Save it again with torch.save, which does not compress."
        )
    return False


def _globals(path: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except UnpicklingError as error:  # another pickle protocol than torch.save's
        raise _unreadable_pickle(path, error) from error
    except Exception as error:  # torch raises whatever the damaged bytes led to
        raise corrupt(path, error) from error


def _load(path: Path, configs: tuple[str, ...], *, mmap: bool) -> Any:
    stand_ins: list[Any] = [(value, name) for name, value in _NUMPY_STAND_INS.items()]
    stand_ins += [(PickledConfig, name) for name in configs]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols and old storages: nothing a user can act on
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _unreadable_pickle(path: Path, error: UnpicklingError) -> UnsafeCheckpointError:
    detail = str(error).split("\n\n")[-2 if "\n\nCheck the documentation" in str(error) else -1].strip()
    return UnsafeCheckpointError(
        f"{path}: torch's safe unpickler refuses it ({detail}); nothing was run. It may be corrupt, or written "
        "with another pickle protocol than torch.save's own. If it is yours, save it again "
        "with torch.save(checkpoint, path)."
    )
