"""An .onnx file whose structure is read, and not its weights; anybody may have made it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from gptexport_runtime.contract.model import is_plain_name, read_limit
from gptexport_runtime.contract.names import META_BLOCK_SIZE, META_VOCAB_SIZE
from gptexport_runtime.errors import ArtifactError, shown
from gptexport_runtime.files import read_small

MOST_BYTES = (1 << 31) - 1  # protobuf's own limit


def read_graph(path: Path) -> onnx.ModelProto:
    """The model in an .onnx file, without what lies in other files.

    Raises:
        ArtifactError: it is not a regular file, not ONNX, or holds no graph.
    """
    try:
        model = onnx.load_model_from_string(read_small(path, MOST_BYTES))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not an ONNX file, or is damaged ({error}). Export again.") from error
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX file: it holds no graph. Export again.")
    return model


def limits_of(model: onnx.ModelProto, path: Path) -> tuple[int | None, int | None]:
    """block_size and vocab_size, as the metadata of a graph say; None where they do not.

    Raises:
        ArtifactError: one is not a positive integer.
    """
    meta = {entry.key: entry.value for entry in model.metadata_props}
    return read_limit(meta, META_BLOCK_SIZE, path), read_limit(meta, META_VOCAB_SIZE, path)


def data_files(model: onnx.ModelProto, path: Path) -> Iterator[str]:
    """The names of the files beside it that it takes weights from.

    Raises:
        ArtifactError: one is not a plain file name: what it leads to is not opened.
    """
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                if not is_plain_name(entry.value):
                    raise ArtifactError(
                        f"{path} takes weights from {shown(entry.value)}; expected the name of a file beside it. Save "
                        "it again with its weights in one file beside it."
                    )
                yield entry.value
