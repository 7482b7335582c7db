"""Triton's Python backend around gptexport's runtime: generates text, a response a token.

Triton's Python needs gptexport-runtime: `pip install 'gptexport-runtime[cpu]'`. A request is one text. It ends at a
stop id, at max_new_tokens, at block_size, or when the client goes away; then its cache is freed.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from gptexport_runtime import GPTExportError, load
from gptexport_runtime.contract.names import INPUT_IDS
from gptexport_runtime.generate.stream import ENDED

WHOLE = ("max_new_tokens", "top_k", "seed")
REAL = ("temperature", "top_p", "min_p", "repetition_penalty")


class TritonPythonModel:
    """One instance: a session, and threads that each continue a text."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle that lies beside this file."""
        said = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self._session = load(bundle, device=said["device"])
        self._threads = ThreadPoolExecutor(int(said["streams"]))

    def execute(self, requests: list[Any]) -> None:
        """Begin each request; its responses come from a thread."""
        for request in requests:
            self._threads.submit(self._continue, request, request.get_response_sender())

    def finalize(self) -> None:
        """Let what has begun end, and free the model."""
        self._threads.shutdown()
        self._session.close()

    def _continue(self, request: Any, sender: Any) -> None:
        try:
            with closing(self._session.stream([_row(request, INPUT_IDS)], **_options(request))) as steps:
                for step in steps:
                    if sender.is_cancelled():
                        break
                    if step[0] != ENDED:
                        sender.send(triton.InferenceResponse([triton.Tensor("token", step)]))
        except GPTExportError as error:
            sender.send(triton.InferenceResponse(error=triton.TritonError(str(error))))
        except Exception as error:  # or the client would wait for ever
            sender.send(triton.InferenceResponse(error=triton.TritonError(f"{type(error).__name__}: {error}")))
        finally:
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _row(request: Any, name: str) -> Any:
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else np.array(tensor.as_numpy()).reshape(-1)


def _options(request: Any) -> dict[str, Any]:
    """What the request says; the runtime checks it, and knows what is right where it says nothing."""
    found: dict[str, Any] = {}
    for name in (*WHOLE, *REAL):
        row = _row(request, name)
        if row is not None and len(row):
            found[name] = int(row[0]) if name in WHOLE else float(row[0])
    stop = _row(request, "stop")
    return found if stop is None else {**found, "stop": stop.tolist()}
