"""A real Triton server on a repository that `gptexport triton` wrote, beside the runtime's own answers.

    python3.11 -m venv triton-env
    triton-env/bin/pip install nvidia-pytriton==0.7.0 'numpy<2' onnxruntime 'tritonclient[grpc,http]'
    PYTHONPATH=.:runtime triton-env/bin/python -m scripts.triton.check demo/gpt repository/

The server is the binary in the nvidia-pytriton wheel (Triton 2.51), started and stopped here, on loopback. That wheel
has no ONNX Runtime backend; scripts/triton/onnxruntime_backend.py stands in for it. Exit code 1: something is wrong.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as http
from google.protobuf import text_format
from tritonclient.grpc import InferInput, model_config_pb2

import gptexport_runtime
from gptexport_runtime import Session, load
from scripts.triton.client import Client

WAIT = 60.0  # seconds for the server to be ready


def main() -> None:
    bundle, repository = map(Path, sys.argv[1:3])
    found = find_spec("pytriton")
    assert found is not None and found.origin is not None
    failed = 0
    with server(repository, Path(found.origin).parent / "tritonserver") as ports, load(bundle) as session:
        for check in CHECKS:
            try:
                print(f"ok    {check.__name__.strip('_')}: {check(session, repository, ports)}")
            except Exception as error:
                failed += 1
                print(f"FAIL  {check.__name__.strip('_')}: {type(error).__name__}: {error}")
    sys.exit(bool(failed))


@contextlib.contextmanager
def server(repository: Path, home: Path) -> Iterator[tuple[int, int]]:
    """Start it, and stop it at the end. Gives its HTTP and gRPC ports."""
    with tempfile.TemporaryDirectory() as work:
        backends = _backends(home, Path(work))
        ports = [_free_port() for _ in range(3)]
        command = [
            str(home / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
        ]
        command += [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        command += [f"--{name}-address=127.0.0.1" for name in ("http", "grpc")]
        libraries = home.parents[1] / "nvidia_pytriton.libs"
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        log = Path(work, "log")
        with log.open("w") as to, subprocess.Popen(command, env=environment, stdout=to, stderr=to) as running:
            try:
                _wait(ports[0], running, log)
                yield ports[0], ports[1]
            finally:
                running.terminate()


def _backends(home: Path, work: Path) -> Path:
    """Triton's Python backend with the stub of this Python, and the stand-in for ONNX Runtime's.

    The stub's Python reads no PYTHONPATH; beside itself it finds links to the packages of this environment.
    """
    made, version = work / "backends", f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(home / "backends", made)
    shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", made / "python")
    runtime = Path(gptexport_runtime.__file__).parent
    for package in [runtime, *Path(sysconfig.get_path("purelib")).iterdir()]:
        if not (made / "python" / package.name).exists():
            (made / "python" / package.name).symlink_to(package)
    (made / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), made / "onnxruntime" / "model.py")
    return made


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _wait(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + WAIT
    while time.monotonic() < until and running.poll() is None:
        with contextlib.suppress(OSError, Exception):
            if http.InferenceServerClient(f"127.0.0.1:{port}").is_server_ready():
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{_errors(log)}")


def _errors(log: Path) -> str:
    lines = log.read_text().splitlines()
    return "\n".join([line for line in lines if line.startswith("E") or "rror" in line] or lines[-20:])


def _client(ports: tuple[int, int]) -> Client:
    return Client(f"127.0.0.1:{ports[1]}")


def _configs_are_tritons_own(_session: Session, repository: Path, ports: tuple[int, int]) -> str:
    """Each file parses into Triton's own message, and the server has it so."""
    server = _client(ports).server
    count = 0
    for file in sorted(repository.glob("*/config.pbtxt")):
        mine = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        theirs = server.get_model_config(file.parent.name).config
        for field in ("name", "max_batch_size", "input", "output", "parameters", "model_warmup"):
            assert getattr(mine, field) == getattr(theirs, field), (file, field)
        count += 1
    return f"{count} files"


def _grpc_gives_the_runtimes_numbers(session: Session, _repository: Path, ports: tuple[int, int]) -> str:
    client, worst = _client(ports), 0.0
    for length in (1, 2, 17, 100):
        row = np.random.default_rng(length).integers(0, session.config.vocab_size, length).tolist()
        expected = {"logits": session.logits([row])[0], "last": session.last_logits([row])[0]}
        expected["score"] = session.score([row]).logprobs[0]
        for head, value in expected.items():
            out = client.run(head, row)
            assert out.shape == value.shape, (head, out.shape, value.shape)
            worst = max(worst, float(np.abs(out - value).max(initial=0)))
    assert worst < 1e-4, worst
    return f"largest difference {worst:.1e}: rows are padded to buckets"


def _http_gives_the_very_same(session: Session, _repository: Path, ports: tuple[int, int]) -> str:
    """Unpadded, at a bucket's length: the same shape, the same bits."""
    ids = np.random.default_rng(0).integers(0, session.config.vocab_size, (2, 64))
    given = http.InferInput("input_ids", [2, 64], "INT64")
    given.set_data_from_numpy(ids)
    client = http.InferenceServerClient(f"127.0.0.1:{ports[0]}")
    out = client.infer("gpt_logits", [given]).as_numpy("logits")
    difference = float(np.abs(out - session.logits(ids)).max())
    assert difference < 1e-4, difference
    return f"largest difference {difference:.1e}"


def _tokens_are_the_runtimes(session: Session, _repository: Path, ports: tuple[int, int]) -> str:
    client, row = _client(ports), list(b"def main(")
    cases: list[dict[str, Any]] = [
        {"temperature": 0.0, "max_new_tokens": 30},
        {"temperature": 0.8, "top_k": 20, "seed": 3, "max_new_tokens": 30},
        {"temperature": 0.9, "top_p": 0.5, "min_p": 0.125, "repetition_penalty": 1.25, "seed": 4, "max_new_tokens": 30},
    ]
    for options in cases:
        # a float32 on its way to the server; the runtime must see the same
        single: dict[str, Any] = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in options.items()}
        expected = session.generate([row], **single)[0].tolist()
        assert list(client.stream(row, **options)) == expected, options
    greedy = session.generate([row], temperature=0.0, max_new_tokens=30)[0].tolist()
    stopped = list(client.stream(row, temperature=0.0, max_new_tokens=30, stop=[greedy[5]]))
    assert stopped == greedy[: greedy.index(greedy[5])], (stopped, greedy)
    return f"{len(cases)} ways to sample, and a stop id"


def _concurrent_requests_meet(session: Session, _repository: Path, ports: tuple[int, int]) -> str:
    """Of different lengths, padded to one bucket: the server's own statistics say how large the batches were."""
    draw = np.random.default_rng(1)
    rows = [draw.integers(0, session.config.vocab_size, n).tolist() for n in draw.integers(65, 129, 64)]
    before = _statistics(ports)
    local = threading.local()

    def ask(row: list[int]) -> np.ndarray:
        if not hasattr(local, "client"):
            local.client = _client(ports)
        client: Client = local.client
        return client.run("score", row)

    with ThreadPoolExecutor(16) as pool:
        for row, out in zip(rows, pool.map(ask, rows), strict=True):
            assert np.abs(out - session.score([row]).logprobs[0]).max() < 1e-4
    now = _statistics(ports)
    inferred, executed = (b - a for a, b in zip(before[:2], now[:2], strict=True))
    assert executed < inferred == len(rows), (inferred, executed)
    return f"{inferred} requests in {executed} batches; of each size so far: {now[2]}"


def _statistics(ports: tuple[int, int]) -> tuple[int, int, dict[int, int]]:
    said = _client(ports).server.get_inference_statistics("gpt_score").model_stats[0]
    sizes = {int(batch.batch_size): int(batch.compute_infer.count) for batch in said.batch_stats}
    return int(said.inference_count), int(said.execution_count), sizes


def _refused(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as error:
        return " ".join(str(error).split())[:160]
    raise AssertionError("it was not refused")


def _mistakes_are_refused_and_the_server_lives_on(session: Session, _r: Path, ports: tuple[int, int]) -> str:
    client, V = _client(ports), session.config.vocab_size
    T = session.config.block_size or 0

    def raw(ids: np.ndarray) -> object:
        given = InferInput("input_ids", list(ids.shape), "INT64")
        given.set_data_from_numpy(ids)
        return client.server.infer("gpt_logits", [given])

    said = {
        "bad id": _refused(lambda: raw(np.full((1, 4), V, np.int64))),
        "negative id": _refused(lambda: raw(np.full((1, 4), -1, np.int64))),
        "too long": _refused(lambda: raw(np.zeros((1, T + 1), np.int64))),
        "too large": _refused(lambda: raw(np.zeros((999, 4), np.int64))),
        "bad id to generate": _refused(lambda: list(client.stream([V]))),
        "too long to generate": _refused(lambda: list(client.stream([0] * (T + 1)))),
        "bad option": _refused(lambda: list(client.stream([1], top_p=7.0))),
        "bad id in the client": _refused(lambda: client.run("score", [-1])),
    }
    assert len(client.run("score", [1, 2, 3])) == 2
    return "".join(f"\n        {name}: {text}" for name, text in said.items())


def _a_client_that_leaves_frees_its_place(session: Session, _r: Path, ports: tuple[int, int]) -> str:
    """More of them than an instance generates at once: if their texts went on, the last would wait for them."""
    for _ in range(12):
        steps = _client(ports).stream([1], temperature=1.0)
        next(steps)
        steps.close()
    began = time.monotonic()
    tokens = list(_client(ports).stream([1], temperature=0.0, max_new_tokens=3))
    assert len(tokens) == 3
    return f"12 clients left after a token; the next had its text after {time.monotonic() - began:.2f} s"


CHECKS = [
    _configs_are_tritons_own,
    _grpc_gives_the_runtimes_numbers,
    _http_gives_the_very_same,
    _tokens_are_the_runtimes,
    _concurrent_requests_meet,
    _mistakes_are_refused_and_the_server_lives_on,
    _a_client_that_leaves_frees_its_place,
]

if __name__ == "__main__":
    main()
