"""Speed beside eager and torch.compile, in passes of a few peers: what a pass has measured is saved before the next.

Peers of a pass are warmed up one after the other, since torch.compile's max-autotune times its candidates meanwhile,
and are then measured in interleaved rounds. gptexport is in every pass: it is what the others are compared with.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.models import SIZES
from scripts.bench.tables import shapes_of
from scripts.bench.workers import interleave, module, running
from scripts.gpu.part import Part
from scripts.gpu.peers import (
    COMPILED,
    COMPILED_WIDE,
    EAGER,
    GRAPHED,
    OWN,
    OWN_LAID_OUT,
    OWN_LONGER,
    OWN_NATIVE,
    OWN_PADDED,
    OWN_PLAIN,
    OWN_TUNED,
    TUNED,
    TUNED_WIDE,
    Asked,
)

PEERS = module("scripts.gpu.peers")


@dataclass(frozen=True)
class Pass:
    """Peers that are measured in the same rounds."""

    name: str
    peers: tuple[str, ...]


DEFAULT = Pass("default", (OWN, EAGER, COMPILED))
SAME_LOGITS = Pass("same logits", (OWN, COMPILED_WIDE, GRAPHED))
SWITCHES = Pass("switches", (OWN, OWN_PLAIN, OWN_TUNED, OWN_LONGER))
LAYOUT = Pass("layout of the logits", (OWN, OWN_PADDED, OWN_NATIVE, OWN_LAID_OUT, COMPILED))
HALF = Pass("float16", (OWN, EAGER, COMPILED_WIDE))
LARGE = Pass("XL", (OWN, EAGER, COMPILED_WIDE))
AUTOTUNED = (Pass("max-autotune, float32 logits", (OWN, TUNED_WIDE)), Pass("max-autotune", (OWN, TUNED)))


def bench(part: Part) -> None:
    """GPT-2 124M, beside eager and torch.compile with its own logits and with float32 ones; and our own switches."""
    setting = part.setting
    part.found(matmul_flop_per_s=matmul_rate(setting.torch_device), flops=flops_of(setting.size, setting.shapes))
    for each in (DEFAULT, SAME_LOGITS, SWITCHES, *([LAYOUT] if setting.lays_out_logits else [])):
        measure(part, each, part.folder / setting.dtype, setting.dtype, setting.shapes)
    if setting.other_dtype is not None:
        measure(part, HALF, part.folder / setting.other_dtype, setting.other_dtype, setting.shapes)


def tuned(part: Part) -> None:
    """Beside torch.compile max-autotune, which takes minutes to compile."""
    for each in AUTOTUNED:
        measure(part, each, part.folder / part.setting.dtype, part.setting.dtype, part.setting.shapes)


def xl(part: Part) -> None:
    """The shape of GPT-2 XL: 48 layers, 1600 wide, 25 heads."""
    from scripts.gpu.prepare import prepare_xl

    setting = part.setting
    folder = prepare_xl(part)
    part.found(matmul_flop_per_s=matmul_rate(setting.torch_device), flops=flops_of(setting.xl_size, setting.xl_shapes))
    measure(part, LARGE, folder, setting.dtype, setting.xl_shapes)


def measure(part: Part, each: Pass, folder: Path, dtype: str, shapes: str) -> None:
    """Every peer of a pass at every shape; a peer that cannot, or fails, is named and the others go on."""
    Asked(part.setting.name, dtype, shapes).write(folder)
    passes = dict(part.data.get("passes", {}))
    with running(PEERS, each.peers, folder, together=False) as workers:
        missing = dict(workers.missing)
        seconds: dict[str, dict[str, list[float]]] = {}
        for B, T in shapes_of(shapes):
            measured, _ = interleave(workers.started, [(B, T)], 5 if part.quick else 11, missing)
            seconds[f"{B}x{T}"] = measured[B, T]
            passes[each.name] = {"dtype": dtype, "seconds": seconds, "missing": missing}
            part.found(passes=passes)


def flops_of(size: str, shapes: str) -> dict[str, float]:
    from gptexport.architectures.gpt2 import forward_flops

    return {f"{B}x{T}": forward_flops(SIZES[size], B, T) for B, T in shapes_of(shapes)}


def matmul_rate(device: str, tries: int = 20) -> float:
    """FLOP/s of torch's bfloat16 product of two square matrices; the median."""
    import torch

    size = 8192 if device == "cuda" else 64
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    spent = []
    for _ in range(tries):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return 2.0 * size**3 / statistics.median(spent[tries // 4 :])
