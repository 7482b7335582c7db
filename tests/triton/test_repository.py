"""A repository is what Triton's documentation says, field by field. A real server loads one in scripts.triton.check."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.errors import OutputExistsError
from gptexport.export import export_onnx
from gptexport.triton import Serving, write_repository
from gptexport.triton.text_format import Enum, text_format
from gptexport_runtime import load
from gptexport_runtime.errors import InputError
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.fake_engine import write_engine

LAST = """\
name: "gpt_last"
platform: "onnxruntime_onnx"
max_batch_size: 4
input {
  name: "input_ids"
  data_type: TYPE_INT64
  dims: [ -1 ]
}
input {
  name: "lengths"
  data_type: TYPE_INT64
  dims: [ 1 ]
  reshape {
    shape: [  ]
  }
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: [ 97 ]
}
instance_group {
  count: 2
  kind: KIND_CPU
}
dynamic_batching {
  max_queue_delay_microseconds: 500
}
version_policy {
  latest {
    num_versions: 1
  }
}
response_cache {
  enable: true
}
model_warmup {
  name: "4x17"
  batch_size: 4
  inputs {
    key: "input_ids"
    value {
      data_type: TYPE_INT64
      dims: [ 17 ]
      zero_data: true
    }
  }
  inputs {
    key: "lengths"
    value {
      data_type: TYPE_INT64
      dims: [ 1 ]
      zero_data: true
    }
  }
}
parameters {
  key: "block_size"
  value {
    string_value: "17"
  }
}
parameters {
  key: "vocab_size"
  value {
    string_value: "97"
  }
}
parameters {
  key: "buckets"
  value {
    string_value: "17"
  }
}
"""
SERVING = Serving(max_batch=4, instances=2, queue_delay=500, response_cache=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return export_onnx(load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt"))), folder / "gpt").path


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repositories") / "repository"
    write_repository(bundle, out, SERVING)
    return out


def test_a_config_says_what_the_graph_says(repository: Path) -> None:
    assert (repository / "gpt_last" / "config.pbtxt").read_text() == LAST
    for name, dims in (("logits", "[ -1, 97 ]"), ("score", "[ -1 ]")):
        text = (repository / f"gpt_{name}" / "config.pbtxt").read_text()
        output = text.partition("output {")[2].partition("}")[0]
        assert f"dims: {dims}" in output and "lengths" not in text


def test_every_graph_runs_as_it_lies_there(repository: Path, bundle: Path) -> None:
    """A graph with weights beside it is a folder that is named as the file would be."""
    ids = np.arange(10).reshape(2, 5)
    with load(bundle) as session:
        expected = {
            "logits": session.logits(ids),
            "last": session.last_logits(ids),
            "score": session.score(ids).logprobs,
        }
    for name, value in expected.items():
        folder = repository / f"gpt_{name}" / "1" / "model.onnx"
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "weights.data"}
        graph = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        fed = {"input_ids": ids, "lengths": np.array([5, 5])}
        (out,) = graph.run(None, {item.name: fed[item.name] for item in graph.get_inputs()})
        assert np.abs(out - value).max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"target": "cpu"}, {"quantize": "int8"}, {"quantize": "int4"}], ids=str)
def test_a_wrong_id_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """ONNX counts a negative id from the end, and int4 reads whatever lies behind its table."""
    checkpoint = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt")))
    made = export_onnx(checkpoint, tmp_path / "gpt", **options).path
    write_repository(made, tmp_path / "repository", SERVING)
    for name in ("logits", "score"):
        file = tmp_path / "repository" / f"gpt_{name}" / "1" / "model.onnx" / "model.onnx"
        graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        graph.run(None, {"input_ids": np.array([[0, 96, 3]])})
        for wrong in (-1, -97, -98, 97, 10**6):
            with pytest.raises(Exception, match=r"input_ids\.checked.*out of data bounds"):
                graph.run(None, {"input_ids": np.array([[3, wrong, 3]])})


def test_an_engine_is_a_plan(tmp_path: Path) -> None:
    write_engine(tmp_path)
    configs = write_repository(tmp_path / "gpt.engine", tmp_path / "out", Serving(max_batch=64, buckets=(32,)))
    assert [*configs] == ["gpt_logits"]
    assert 'platform: "tensorrt_plan"\nmax_batch_size: 4\n' in configs["gpt_logits"], "what its profiles take"
    assert "KIND_GPU" in configs["gpt_logits"]
    made = tmp_path / "out" / "gpt_logits" / "1" / "model.plan"
    assert made.read_bytes() == (tmp_path / "gpt.engine").read_bytes()


def test_a_lone_graph_that_does_not_say_its_block_size(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "logits.onnx", tmp_path)
    with pytest.raises(InputError, match="does not tell its block_size"):
        write_repository(tmp_path / "logits.onnx", tmp_path / "out", Serving())


@pytest.mark.parametrize(
    ("serving", "message"),
    [(Serving(buckets=(8, 18)), "a bucket is 18"), (Serving(name="../x"), "name is '../x'")],
    ids=["bucket", "name"],
)
def test_what_cannot_be_served(bundle: Path, tmp_path: Path, serving: Serving, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_repository(bundle, tmp_path / "out", serving)
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(bundle: Path, repository: Path) -> None:
    with pytest.raises(OutputExistsError):
        write_repository(bundle, repository, SERVING)


def test_the_command(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    ran = cli("triton", bundle, "-o", tmp_path / "out", "--name", "tiny", "--buckets", "4,17")
    assert ran.code == 0 and "tiny_generate" in ran.out
    assert '"4,17"' in (tmp_path / "out" / "tiny_score" / "config.pbtxt").read_text()
    assert cli("triton", bundle, "-o", tmp_path / "other", "--buckets", "4,x").code == 2


def test_text_is_quoted_and_names_are_not() -> None:
    message: dict[str, Any] = {"a": 'x"\n', "b": Enum("KIND"), "c": True, "d": [1, -1], "e": [{"f": 2}, {"f": 3}]}
    assert text_format(message) == 'a: "x\\"\\n"\nb: KIND\nc: true\nd: [ 1, -1 ]\ne {\n  f: 2\n}\ne {\n  f: 3\n}\n'


class Sender:
    """As Triton's response sender; the client goes away after `patience` responses."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.tokens: list[int] = []
        self.error: str | None = None
        self.final = 0

    def is_cancelled(self) -> bool:
        return len(self.tokens) >= self.patience

    def send(self, response: Any = None, flags: int = 0) -> None:
        self.final += flags
        if response is not None:
            self.error = response.error
            self.tokens += [] if response.error else response.tensors[0].as_numpy().tolist()


class Tensor:
    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, np.asarray(value)

    def as_numpy(self) -> Any:
        return self.value


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model that generates, and of Triton's Python only what it uses."""
    triton: Any = ModuleType("triton_python_backend_utils")
    triton.Tensor, triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = Tensor, 1
    triton.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error)
    triton.TritonError = str
    triton.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.delitem(sys.modules, "gptexport.triton.model", raising=False)
    from gptexport.triton.model import TritonPythonModel

    made = TritonPythonModel()
    config = '{"parameters": {"device": {"string_value": "cpu"}, "streams": {"string_value": "2"}}}'
    folder = str(repository / "gpt_generate")
    made.initialize({"model_config": config, "model_repository": folder, "model_version": "1"})
    return made


def ask(model: Any, patience: int = 1000, **inputs: Any) -> Sender:
    sender = Sender(patience)
    tensors = {name: Tensor(name, np.reshape(value, -1)) for name, value in inputs.items()}
    model.execute([SimpleNamespace(inputs=tensors, get_response_sender=lambda: sender)])
    model.finalize()
    assert sender.final == 1, "or the client waits for ever"
    return sender


def test_it_generates_what_the_runtime_does(model: Any, bundle: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.5, "top_k": 9, "seed": 3}
    with load(bundle) as session:
        expected = session.generate([[1, 2, 3]], max_new_tokens=8, temperature=0.5, top_k=9, seed=3)[0].tolist()
    assert ask(model, input_ids=[1, 2, 3], **options).tokens == expected


def test_it_stops_where_it_is_told(model: Any, bundle: Path) -> None:
    with load(bundle) as session:
        greedy = session.generate([[1, 2, 3]], max_new_tokens=8, temperature=0)[0].tolist()
    found = ask(model, input_ids=[1, 2, 3], max_new_tokens=8, temperature=0.0, stop=[greedy[4]])
    assert found.tokens == greedy[: greedy.index(greedy[4])]


def test_a_client_that_goes_away_ends_its_text(model: Any) -> None:
    assert len(ask(model, patience=2, input_ids=[1]).tokens) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [97]}, "expected 0 <= id < 97"),
        ({"input_ids": [0] * 18}, "the model's block_size is 17"),
        ({"input_ids": [1], "top_p": 2.0}, "top_p is 2.0"),
    ],
    ids=["id", "long", "option"],
)
def test_a_mistake_is_answered(model: Any, inputs: dict[str, Any], message: str) -> None:
    assert message in (ask(model, **inputs).error or "")
