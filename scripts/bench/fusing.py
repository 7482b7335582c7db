"""What it gains that attention written by hand becomes one node: on the CPU, and in the activations of an engine.

    python -m scripts.bench.fusing --out docs/measurements/fusing

Two blocks as wide as GPT-2 124M's, with attention by hand over all heads at once (nanoGPT without flash) and with a
module for each head (the lecture). Each is exported as it was written, and as gptexport recognises it; each bundle is
timed in a process of its own, in interleaved rounds. Engines are built for compute capability 8.9; no GPU is used.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from gptexport_runtime import load
from scripts.bench.processes import GPTEXPORT, run
from scripts.bench.tables import Shape, options, shapes_of, speed, table, write
from scripts.bench.workers import Measure, Seconds, interleave, module, parse_or_serve, running

V, C, H, BLOCK_SIZE, LAYERS = 256, 768, 12, 1024, 2
WRITTEN, ONE_NODE = "as written", "one node"
EXPORT = "import sys; from scripts.bench.fusing import export_bundle; export_bundle(*sys.argv[1:])"


class AllHeads(nn.Module):
    """nanoGPT's attention without flash."""

    tril: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.register_buffer("tril", torch.tril(torch.ones(BLOCK_SIZE, BLOCK_SIZE)).view(1, 1, BLOCK_SIZE, BLOCK_SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, H, C // H).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (C // H) ** -0.5
        weights = F.softmax(scores.masked_fill(self.tril[:, :, :T, :T] == 0, float("-inf")), dim=-1)
        out: torch.Tensor = self.proj((weights @ v).transpose(1, 2).reshape(B, T, C))
        return out


class OneHead(nn.Module):
    tril: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, C // H, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(BLOCK_SIZE, BLOCK_SIZE)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        T = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * (C // H) ** -0.5
        weights = F.softmax(scores.masked_fill(self.tril[:T, :T] == 0, float("-inf")), dim=-1)
        out: torch.Tensor = weights @ self.value(x)
        return out


class HeadsAlone(nn.Module):
    """The lecture's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.proj = nn.ModuleList(OneHead() for _ in range(H)), nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(torch.cat([head(x) for head in self.heads], dim=-1))
        return out


class GPT(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size = BLOCK_SIZE
        self.emb, self.pos = nn.Embedding(V, C), nn.Embedding(BLOCK_SIZE, C)
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(2 * LAYERS + 1))
        self.attention = nn.ModuleList(attention() for _ in range(LAYERS))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C)) for _ in range(LAYERS)
        )
        self.head = nn.Linear(C, V, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.emb(idx) + self.pos(torch.arange(idx.shape[1]))
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        logits: torch.Tensor = self.head(self.norms[-1](x))
        return logits


MODELS: dict[str, type[nn.Module]] = {"all heads at once": AllHeads, "heads one by one": HeadsAlone}
BUNDLES = {f"{model}, {way}": (model, way) for model in MODELS for way in (WRITTEN, ONE_NODE)}


def all_heads() -> nn.Module:
    return GPT(AllHeads)


def heads_alone() -> nn.Module:
    return GPT(HeadsAlone)


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json", rounds=5)
    parser.add_argument("--shapes", type=shapes_of, default="1x128,1x1024")
    args = parse_or_serve(parser, timed)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in BUNDLES:
            for target in ("cpu", "portable"):
                subprocess.run([sys.executable, "-c", EXPORT, name, target, str(folder)], check=True)
        with running(module("scripts.bench.fusing"), list(BUNDLES), folder) as workers:
            seconds, _ = interleave(workers.started, args.shapes, args.rounds)
        activations = {name: _activations(folder / f"{name}.portable", folder) for name in BUNDLES}
    title = (
        f"{LAYERS} blocks of {C} channels and {H} heads, {os.cpu_count()} cores, medians of {args.rounds} interleaved "
        f"rounds; {load_before:.0f} other processes were running when it began."
    )
    data = {"seconds": {f"{B}x{T}": by_name for (B, T), by_name in seconds.items()}, "activations": activations}
    write(args.out, [title, "", *report(seconds, activations)], data)


def export_bundle(name: str, target: str, folder: str) -> None:
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx, pipeline

    model, way = BUNDLES[name]
    factory = all_heads if MODELS[model] is AllHeads else heads_alone
    checkpoint = load_checkpoint(f"{__file__}:{factory.__name__}")
    out = Path(folder) / f"{name}.{target}"
    with mock.patch.object(pipeline, "recognise_attention", _leave) if way == WRITTEN else mock.MagicMock():
        dtype = "bfloat16" if target == "portable" else "float32"  # engines fuse attention in 16 bits alone
        export_onnx(checkpoint, out, target=target, dtype=dtype, graphs=["logits"])


def _leave(_trace: object, **_options: int) -> dict[str, dict[str, int]]:
    return {}


def timed(name: str, folder: Path) -> Measure:
    """Seconds of a forward at (B,T), into a buffer that is used again."""
    import time

    session = load(folder / f"{name}.cpu", "cpu")

    def measure(B: int, T: int) -> float:
        ids = np.random.default_rng(0).integers(0, V, (B, T))
        out = np.empty((B, T, V), np.float32)
        began = time.perf_counter()
        session.logits(ids, out=out)
        return time.perf_counter() - began

    return measure


def _activations(bundle: Path, folder: Path) -> int:
    """Bytes of the activations of an engine for 8x1024 at most."""
    engine = folder / "gpt.engine"
    shapes = ["--opt", "8x256", "--max", f"8x{BLOCK_SIZE}", "--compute-capability", "8.9"]
    run([*GPTEXPORT, "trt", str(bundle), "-o", str(engine), "--backend", "tensorrt-rtx", *shapes, "--force", "-q"])
    found: int = json.loads(engine.with_name("gpt.engine.json").read_text())["activation_bytes"][0]
    return found


def report(seconds: Seconds[Shape], activations: dict[str, int]) -> list[str]:
    rows = []
    for model in MODELS:
        written, one = f"{model}, {WRITTEN}", f"{model}, {ONE_NODE}"
        for (B, T), by_name in seconds.items():
            ms = [f"{1e3 * statistics.median(by_name[name]):,.1f} ms" for name in (written, one)]
            rows.append([model, f"CPU, {B}×{T}", *ms, f"{speed(by_name[one], by_name[written]):.2f} ×"])
        sizes = [f"{activations[name] / 1e6:,.0f} MB" for name in (written, one)]
        ratio = f"{activations[written] / activations[one]:.2f} ×"
        rows.append([model, f"engine's activations, bfloat16, 8×{BLOCK_SIZE}", *sizes, ratio])
    return table(["attention", "what", WRITTEN, ONE_NODE, "gain"], rows)


if __name__ == "__main__":
    main()
