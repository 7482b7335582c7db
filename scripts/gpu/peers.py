"""Full logits on a GPU beside eager PyTorch and torch.compile: each a process, its logits left on the device.

    python -m scripts.gpu.peers --worker NAME FOLDER      # started by scripts.gpu.parts, through scripts.bench.workers

FOLDER holds `hf` (the checkpoint), `bundle` (of `--target cuda`) and `peers.json`, an `Asked`. A call is timed from its
start until the device is done with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from scripts.bench.tables import shapes_of
from scripts.bench.workers import Measure, parse_or_serve
from scripts.gpu.setting import SETTINGS, Setting

OWN, OWN_PLAIN = "gptexport", "gptexport without CUDA graphs"
OWN_TUNED, OWN_LONGER = "gptexport, products tuned", "gptexport, 512 tokens captured"
OWN_PADDED, OWN_NATIVE = "gptexport, padded rows", "gptexport, 16-bit logits"
OWN_LAID_OUT = "gptexport, padded rows of 16-bit logits"
# what such a bundle is exported with, by the folder that it lies in, beside those of the dtypes
LAYOUTS = {"padded": ("--pad-vocab",), "native": ("--native-logits",), "both": ("--pad-vocab", "--native-logits")}
EAGER, COMPILED = "eager", "torch.compile"
COMPILED_WIDE = "torch.compile, float32 logits"  # what gptexport returns
GRAPHED = "torch.compile reduce-overhead, float32 logits"  # with CUDA graphs
TUNED, TUNED_WIDE = "torch.compile max-autotune", "torch.compile max-autotune, float32 logits"
ENOUGH = 0.05  # seconds of calls that a measurement takes the median of
MOST_CALLS = 50

Run = Callable[[np.ndarray], object]  # ids (B,T): returns when the device is done


@dataclass(frozen=True)
class Asked:
    """What a worker is to warm up at, and where."""

    setting: str
    dtype: str
    shapes: str  # "8x1024,1x1"

    def write(self, folder: Path) -> None:
        (folder / "peers.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Asked:
        return Asked(**json.loads((folder / "peers.json").read_text()))


def own(
    folder: Path,
    setting: Setting,
    _asked: Asked,
    *,
    graphs: bool | None = None,
    tune_gemms: bool = False,
    captured_tokens: int = 256,
    layout: str | None = None,
) -> Run:
    """`layout`: one of LAYOUTS; None: logits in float32, one row after the other."""
    from gptexport_runtime import CudaOptions, load

    options = CudaOptions(graphs=graphs, tune_gemms=tune_gemms, captured_tokens=captured_tokens)
    gpt = load((folder.parent / layout if layout else folder) / "bundle", setting.device, cuda=options)
    return lambda ids: gpt.logits(ids, device_output=True)  # complete when it returns


def torch_model(folder: Path, setting: Setting, asked: Asked, *, mode: str | None = None, wide: bool = False) -> Run:
    """`mode`: None for eager, else torch.compile's. `wide`: the logits are float32, as gptexport's are."""
    import torch

    from gptexport.checkpoints import load_checkpoint

    device = setting.torch_device
    model = load_checkpoint(str(folder / "hf")).model.to(device=device, dtype=getattr(torch, asked.dtype))

    def forward(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(ids)
        return logits.float() if wide else logits

    called: Callable[[torch.Tensor], torch.Tensor] = forward
    if mode is not None:
        called = torch.compile(forward, mode=mode, dynamic=False)

    def run(ids: np.ndarray) -> object:
        with torch.inference_mode():
            logits = called(on_device[ids.shape])
            if device == "cuda":
                torch.cuda.synchronize()
        return logits

    on_device: dict[tuple[int, ...], torch.Tensor] = {
        shape: torch.randint(100, shape, device=device) for shape in shapes_of(asked.shapes)
    }
    return run


PEERS: dict[str, Callable[[Path, Setting, Asked], Run]] = {
    OWN: own,
    OWN_PLAIN: partial(own, graphs=False),
    OWN_TUNED: partial(own, tune_gemms=True),
    OWN_LONGER: partial(own, captured_tokens=512),
    OWN_PADDED: partial(own, layout="padded"),
    OWN_NATIVE: partial(own, layout="native"),
    OWN_LAID_OUT: partial(own, layout="both"),
    EAGER: torch_model,
    COMPILED: partial(torch_model, mode="default"),
    COMPILED_WIDE: partial(torch_model, mode="default", wide=True),
    GRAPHED: partial(torch_model, mode="reduce-overhead", wide=True),
    TUNED: partial(torch_model, mode="max-autotune"),
    TUNED_WIDE: partial(torch_model, mode="max-autotune", wide=True),
}


def timed(name: str, folder: Path) -> Measure:
    """Warm up at every shape, which compiles and captures; then seconds of one call at (B,T), a median of several."""
    asked = Asked.read(folder)
    run, shapes = PEERS[name](folder, SETTINGS[asked.setting], asked), shapes_of(asked.shapes)
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
