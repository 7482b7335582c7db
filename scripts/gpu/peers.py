"""Full logits on a GPU beside eager PyTorch and torch.compile: each a process, its logits left on the device.

    python -m scripts.gpu.peers --worker NAME FOLDER      # started by scripts.gpu.parts, through scripts.bench.workers

FOLDER holds `hf` (the checkpoint), `bundle` (of `--target cuda`) and `shapes` (those to warm up at: "8x1024,1x1").
A call is timed from its start until the device is done with it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.bench.tables import shapes_of
from scripts.bench.workers import Measure, parse_or_serve

OWN, OWN_PLAIN = "gptexport", "gptexport without CUDA graphs"
EAGER, COMPILED, TUNED = "eager", "torch.compile", "torch.compile max-autotune"
ENOUGH = 0.05  # seconds of calls that a measurement takes the median of
MOST_CALLS = 50

Run = Callable[[np.ndarray], object]  # ids (B,T): returns when the device is done


def own(folder: Path, *, graphs: bool | None) -> Run:
    from gptexport_runtime import CudaOptions, load

    gpt = load(folder / "bundle", "cuda", cuda=CudaOptions(graphs=graphs))
    return lambda ids: gpt.logits(ids, device_output=True)  # complete when it returns


def torch_model(folder: Path, mode: str | None) -> Run:
    """`mode`: None for eager, else torch.compile's."""
    import torch

    from gptexport.checkpoints import load_checkpoint

    model = load_checkpoint(str(folder / "hf")).model.to(device="cuda", dtype=torch.bfloat16)
    forward: Callable[[torch.Tensor], object] = model
    if mode is not None:
        forward = torch.compile(model, mode=mode, dynamic=False)

    def run(ids: np.ndarray) -> object:
        with torch.inference_mode():
            logits = forward(on_device[ids.shape])
            torch.cuda.synchronize()
        return logits

    shapes = shapes_of((folder / "shapes").read_text())
    on_device: dict[tuple[int, ...], torch.Tensor] = {
        shape: torch.randint(100, shape, device="cuda") for shape in shapes
    }
    return run


PEERS: dict[str, Callable[[Path], Run]] = {
    OWN: lambda folder: own(folder, graphs=None),
    OWN_PLAIN: lambda folder: own(folder, graphs=False),
    EAGER: lambda folder: torch_model(folder, None),
    COMPILED: lambda folder: torch_model(folder, "default"),
    TUNED: lambda folder: torch_model(folder, "max-autotune"),
}


def timed(name: str, folder: Path) -> Measure:
    """Warm up at every shape, which compiles and captures; then seconds of one call at (B,T), a median of several."""
    run, shapes = PEERS[name](folder), shapes_of((folder / "shapes").read_text())
    batches = {shape: np.random.default_rng(0).integers(0, 100, shape) for shape in shapes}
    for ids in batches.values():
        for _ in range(8):
            run(ids)

    def measure(B: int, T: int) -> float:
        spent: list[float] = []
        while sum(spent) < ENOUGH and len(spent) < MOST_CALLS:
            began = time.perf_counter()
            run(batches[B, T])
            spent.append(time.perf_counter() - began)
        return statistics.median(spent)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse_or_serve(parser, timed)
    parser.error("this is a part of scripts.gpu.check, which starts it with --worker")


if __name__ == "__main__":
    main()
