"""A client of a repository that `gptexport triton` wrote: scores of rows of any length, and a text as it is generated.

    python -m scripts.triton.client localhost:8001

It needs `pip install 'tritonclient[grpc]'`. Rows are padded to a length that the server has warmed up, so that requests
of different lengths meet in one batch; what comes behind a row's end is cut off again. Nothing before it changes.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpc


class Client:
    """One server's models, whose names begin with `name`."""

    def __init__(self, address: str, name: str = "gpt") -> None:
        self.server = grpc.InferenceServerClient(address)
        self._name = name
        config = self.server.get_model_config(f"{name}_logits").config
        said = {key: value.string_value for key, value in config.parameters.items()}
        self._vocab_size = int(said["vocab_size"])
        self._buckets = [int(T) for T in said["buckets"].split(",")]

    def run(self, head: str, row: Sequence[int]) -> np.ndarray:
        """The output of a head for a row: logits (T,V), last (V) or score (T-1).

        Raises:
            ValueError: an id is none of the model's, or the row is too long. A graph by itself would not say so of a
                negative id.
        """
        T = self._bucket(row)
        ids = np.zeros((1, T), np.int64)
        ids[0, : len(row)] = row
        inputs = [_input("input_ids", ids)]
        if head == "last":
            inputs.append(_input("lengths", np.array([[len(row)]], np.int64)))
        result = self.server.infer(f"{self._name}_{head}", inputs)
        name = result.get_response().outputs[0].name
        out: np.ndarray = result.as_numpy(name)[0]
        return out if head == "last" else out[: len(row) - (head == "score")]

    def _bucket(self, row: Sequence[int]) -> int:
        wrong = [i for i in row if not 0 <= i < self._vocab_size]
        if wrong:
            raise ValueError(f"{wrong[0]} is no id; expected 0 <= id < {self._vocab_size}.")
        fits = [T for T in self._buckets if len(row) <= T]
        if not row or not fits:
            raise ValueError(f"the row has {len(row)} ids; expected 1 to {self._buckets[-1]}.")
        return fits[0]

    def stream(self, row: Sequence[int], **options: float | Sequence[int]) -> Generator[int, None, None]:
        """New tokens as they come. Options are those of gptexport_runtime's `Session.stream`; `stop` is a list.

        Raises:
            RuntimeError: the server refuses, and says why.
        """
        inputs = [_input("input_ids", np.array(row, np.int64))]
        for name, value in options.items():
            kind = np.float32 if name in ("temperature", "top_p", "min_p", "repetition_penalty") else np.int64
            inputs.append(_input(name, np.array(value, kind).reshape(-1)))
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.server.start_stream(lambda result, error: answers.put((result, error)))
        try:
            self.server.async_stream_infer(f"{self._name}_generate", inputs, enable_empty_final_response=True)
            while True:
                result, error = answers.get(timeout=60)
                if error is not None:
                    raise RuntimeError(str(error))
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return
                yield int(result.as_numpy("token")[0])
        finally:
            self.server.stop_stream(cancel_requests=True)


def _input(name: str, value: np.ndarray) -> Any:
    kinds = {"f": "FP32", "i": "INT64"}
    made = grpc.InferInput(name, list(value.shape), kinds[value.dtype.kind])
    made.set_data_from_numpy(value)
    return made


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "localhost:8001")
    row = list(b"def main(")
    print("log-probs", client.run("score", row))
    for token in client.stream(row, max_new_tokens=20, temperature=0.8, seed=1):
        print(token, end=" ", flush=True)
    print()


if __name__ == "__main__":
    main()
