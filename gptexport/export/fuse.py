"""The graphs of a bundle rewritten for the target they are to run on."""

from __future__ import annotations

from collections.abc import Mapping

from gptexport.config import DType, Target
from gptexport.errors import ExportError
from gptexport.export.check import Audit
from gptexport.export.cpu import fuse_for_cpu
from gptexport.export.cpu_decode import fuse_decode
from gptexport.export.cuda import fuse_for_cuda
from gptexport.export.cuda_decode import fuse_decode_for_cuda
from gptexport.export.trace import Trace
from gptexport_runtime.contract import heads


def fuse_graphs(graphs: Mapping[str, Trace], target: Target, dtype: DType, *, block_size: int) -> dict[str, Audit]:
    """Fuse each graph in place.

    Returns: by kind of graph the audit; nothing for a target that fuses nothing.

    Raises:
        ExportError: opset below 23, where attention is no single node to begin with.
    """
    if target != "portable" and any(trace.graph.graph.opset_imports[""] < 23 for trace in graphs.values()):
        raise ExportError(f"--target {target} fuses attention, which needs opset 23 or later: leave --opset out.")
    audits = {}
    for kind, trace in graphs.items() if target != "portable" else ():
        decode: Audit = {}
        if kind == heads.DECODE.name:  # first its attention, which is another than that of the other graphs
            decode = fuse_decode(trace.graph) if target == "cpu" else fuse_decode_for_cuda(trace.graph, dtype)
        rest = fuse_for_cpu(trace.graph, block_size=block_size) if target == "cpu" else fuse_for_cuda(trace.graph)
        audits[kind] = {**rest, **decode}
    return audits
