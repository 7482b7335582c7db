"""ONNX Runtime on a GPU: a graph whose inputs and outputs stay there until they are wanted on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import Borrowed
from gptexport_runtime.backends.gpu.memory import Block, Place
from gptexport_runtime.backends.ort.bound import Bound, Call
from gptexport_runtime.backends.ort.cuda_options import CudaOptions
from gptexport_runtime.backends.ort.graph import open_session, usable_cores, worth_a_plan
from gptexport_runtime.backends.ort.providers import import_onnxruntime
from gptexport_runtime.backends.ort.signature import read_contract
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import INPUT_IDS, LENGTHS
from gptexport_runtime.errors import BackendUnavailableError

# CUDA graphs of: `score` has a Loop, which nobody can capture
CAPTURABLE = (heads.LOGITS.name, heads.LAST.name, heads.DECODE.name)
# before it, GatherND recorded an address of the host's that was gone when the graph was replayed (onnxruntime#32120)
GRAPHS_SINCE = (1, 31)


class BoundGraph:
    """A graph that is open, with its inputs and outputs bound to a place: the GPU. Threads take turns."""

    backend = "onnxruntime"

    def __init__(self, bound: Bound, path: Path, kind: str, threads: int) -> None:
        self.bound = bound
        self.device = bound.place.device
        self.dlpack_device = bound.place.dlpack_device
        self.threads = threads
        self.info = read_contract(bound.session, path, kind)
        self._output = heads.HEADS[kind].signature.output

    @property
    def stream(self) -> int | None:
        """The CUDA stream in which ids are read that somebody lends; None on the host."""
        return self.bound.place.stream

    def run(self, ids: NDArray[np.int64], out: NDArray[np.float32], lengths: NDArray[np.int64] | None = None) -> None:
        """Compute the graph's output of ids (B,T), and of lengths (B) where it takes them, into `out`.

        Only the output comes to the host: (B,T,V) of `logits`, (B,V) of `last`, (B,T-1) of `score`.

        Raises:
            ExecutionError: ONNX Runtime or CUDA failed.
        """
        feed = {INPUT_IDS: ids} if lengths is None else {INPUT_IDS: ids, LENGTHS: lengths}
        self.bound.compute(Call(feed, self._output, out.shape), out)

    def run_on_device(self, ids: NDArray[np.int64] | Borrowed) -> Block:
        """Logits (B,T,V) in memory of their own on the place. `Borrowed` ids are read where they are."""
        return self.bound.compute_here(Call({INPUT_IDS: ids}, self._output, (*ids.shape, self.info.vocab_size)))

    def read_ids(self, ids: Borrowed) -> NDArray[np.int64]:
        """Ids that are on the place, copied to the host to be checked there."""
        return self.bound.read(ids)


def open_bound_graph(
    path: Path, place: Place, kind: str = heads.LOGITS.name, *, threads: int | None = None, cuda: CudaOptions
) -> BoundGraph:
    """Open the graph in `path` with its inputs and outputs on `place`.

    Args:
        kind: which of SIGNATURES the graph must have; `decode` has an opener of its own (ort_decode.py).
        threads: of the CPU, which computes shapes.

    Raises:
        BackendUnavailableError: ONNX Runtime cannot run this graph there, or not as `cuda` wants it.
        ArtifactError: the file is damaged, its external data is missing, or it is not a graph of that kind.
    """
    threads = threads or usable_cores()
    return BoundGraph(open_bound(path, kind, threads, place, cuda), path, kind, threads)


def open_bound(path: Path, kind: str, threads: int, place: Place, cuda: CudaOptions) -> Bound:
    """Open a graph bound to `place`, with CUDA graphs where it can have them. Raises: as `open_bound_graph`."""

    def open_with(graphs: bool) -> Any:
        return open_session(path, place.device, threads, plan=worth_a_plan(kind), cuda=cuda, graphs=graphs)

    version = import_onnxruntime().__version__
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= GRAPHS_SINCE
    if cuda.graphs and not new_enough:
        raise BackendUnavailableError(
            f"CUDA graphs need onnxruntime-gpu {'.'.join(map(str, GRAPHS_SINCE))} or newer; {version} is installed. "
            "Upgrade it, or load without CudaOptions(graphs=True)."
        )
    possible = kind in CAPTURABLE and new_enough
    return Bound(open_with, place, cuda, graphs=possible, what=str(path))
