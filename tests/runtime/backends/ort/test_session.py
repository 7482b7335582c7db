"""A graph opens where it was asked to, or the error says why not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptexport_runtime import ArtifactError, BackendUnavailableError
from gptexport_runtime.backends.ort import session
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers import why_not
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.backends.ort.providers.cuda import CUDA
from tests.support.tiny import TINY


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_session_that_took_the_cpu_for_cuda_is_refused() -> None:
    """Even when every look beforehand found nothing wrong."""
    if why_not("cuda") is None:
        pytest.skip("CUDA runs here")
    with pytest.raises(BackendUnavailableError, match="ONNX Runtime took CPUExecutionProvider instead"):
        session.open_session(TINY / "logits.onnx", CUDA, OpenOptions())


class NotImplemented(Exception):  # as ONNX Runtime names its own
    pass


LOADING = {
    "no kernel": (NotImplemented("no kernel for X(1)"), BackendUnavailableError, "cannot run m.onnx on cpu: no kernel"),
    "memory": (
        RuntimeError("Failed to allocate memory"),
        BackendUnavailableError,
        "does not fit into the memory of cpu",
    ),
    "opset": (RuntimeError("Opset 99 is under development"), ArtifactError, "upgrade, or export with a lower --opset"),
}


@pytest.mark.parametrize(("error", "kind", "message"), LOADING.values(), ids=LOADING)
def test_what_stops_a_load_is_told_apart(error: Exception, kind: type[Exception], message: str) -> None:
    onnxruntime: Any = SimpleNamespace(__version__="1")
    ours = session._load_error(onnxruntime, Path("m.onnx"), CPU, error)
    assert type(ours) is kind and message in str(ours)


def test_graph_in_memory_finds_its_weights_beside_the_file() -> None:
    path = TINY / "logits.onnx"
    opened = session.open_session(path.read_bytes(), CPU, OpenOptions(), path=path)
    assert [value.name for value in opened.get_inputs()] == ["input_ids"]
