"""`gptexport score`: right, resumable, flat in memory, and how fast beside the raw graph.

    python -m scripts.bench.score demo/gpt demo/ckpt.pt demo/val.bin --only speed --out docs/measurements/score

Each of the parts `eager`, `kills`, `memory` and `speed` takes minutes; `--only` runs one, and keeps what OUT.json has
of the others. Nothing else may run beside `speed`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.score import Asked, Progress, Reading, score_corpus
from gptexport.score.documents import Chunk
from gptexport.score.windows import cut_batches, cut_windows
from gptexport_runtime import load
from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.contract.heads import SCORE
from gptexport_runtime.contract.names import INPUT_IDS
from scripts.bench.tables import machine, options, table, write

TOKENS = 1_000_000
KILLS = 20
EAGER_TOKENS = 8192  # fed to eager at once
Found = dict[str, Any]


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json", rounds=5)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("tokens", type=Path, help="nanoGPT's val.bin")
    parser.add_argument("--only", choices=PARTS, action="append", help="run some parts alone")
    args = parser.parse_args()
    saved = args.out.with_suffix(".json") if args.out else None
    found: Found = json.loads(saved.read_text()) if saved and saved.exists() else {}
    for name in args.only or PARTS:
        with tempfile.TemporaryDirectory() as work:
            found[name] = PARTS[name](args, Path(work))
            print(name, json.dumps(found[name]), file=sys.stderr)
        if saved:
            saved.write_text(json.dumps(found, indent=1) + "\n")
    write(args.out, page(found))


def corpus(tokens: Path, path: Path, count: int) -> list[list[int]]:
    """Documents of `count` tokens together, of lengths from 1 to 40,000 spread evenly in their logarithm."""
    ids = np.resize(np.fromfile(tokens, "<u2"), count).tolist()
    draw, at, documents = np.random.default_rng(1), 0, []
    while at < count:
        length = int(math.exp(draw.uniform(0, math.log(40_000))))
        documents.append(ids[at : at + length])
        at += length
    path.write_text("".join(json.dumps({"ids": document}) + "\n" for document in documents))
    return documents


def eager(args: argparse.Namespace, work: Path) -> Found:
    """Log-probs beside eager PyTorch's, float32 and float64: noise ratios, document by document."""
    documents = corpus(args.tokens, work / "corpus.jsonl", TOKENS)
    asked = Asked(artifact=args.bundle, files=[work / "corpus.jsonl"], out=work / "out", keep_logprobs=True)
    totals = score_corpus(asked, None)
    mine: list[list[float]] = [[] for _ in documents]
    for part in sorted((work / "out" / "parts").iterdir()):
        for row in parquet.read_table(part, columns=["document", "logprobs"]).to_pylist():
            mine[row["document"]] += row["logprobs"]
    checkpoint = load_checkpoint(args.checkpoint)
    block_size = checkpoint.block_size
    single = eager_logprobs(checkpoint.model, documents, block_size)
    double = eager_logprobs(checkpoint.model.double(), documents, block_size)
    ratios, sums = [], []
    for own, plain, exact in zip(mine, single, double, strict=True):
        if len(exact):
            noise = np.sqrt(np.mean((plain - exact) ** 2))
            ratios.append(float(np.sqrt(np.mean((np.array(own) - exact) ** 2)) / noise) if noise else 1.0)
            sums.append(abs(math.fsum(own) - math.fsum(exact)) / len(exact))
    every = [np.concatenate(side) for side in (mine, single, double)]
    noise_ratio = np.sqrt(np.mean((every[0] - every[2]) ** 2) / np.mean((every[1] - every[2]) ** 2))
    return {
        "documents": totals["documents"],
        "tokens": totals["tokens"],
        "nll": totals["nll"],
        "nll_eager": -math.fsum(every[1].tolist()),
        "nll_float64": -math.fsum(every[2].tolist()),
        "noise_ratio": float(noise_ratio),
        "document_ratio_median": statistics.median(ratios),
        "document_ratio_99": float(np.quantile(ratios, 0.99)),
        "document_ratio_max": max(ratios),
        "documents_above_2": sum(ratio > 2 for ratio in ratios),
        "largest_mean_error": max(sums),
    }


def eager_logprobs(model: torch.nn.Module, documents: list[list[int]], block_size: int) -> list[np.ndarray]:
    """Of each document's tokens but the first, by windows as transformers' guide has them."""
    chunks = [Chunk("", np.array(ids, np.int32), None, True, True, 0) for ids in documents]
    windows = [window for window, _ in cut_windows(chunks, block_size, block_size // 2)]
    found: list[np.ndarray] = [np.zeros(0)] * len(windows)
    with torch.inference_mode():
        for rows in cut_batches(windows, EAGER_TOKENS):
            longest = max(len(windows[i].ids) for i in rows)
            ids = torch.zeros((len(rows), longest), dtype=torch.int64)
            for row, i in zip(ids, rows, strict=True):
                row[: len(windows[i].ids)] = torch.from_numpy(windows[i].ids)
            logprobs = model(ids).double().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0].numpy()
            for row, i in zip(logprobs, rows, strict=True):
                n = len(windows[i].ids) - 1
                found[i] = row[n - windows[i].scored : n].copy()
    joined: list[list[np.ndarray]] = [[] for _ in documents]
    for window, row in zip(windows, found, strict=True):
        joined[window.document].append(row)
    return [np.concatenate(rows) for rows in joined]


def kills(args: argparse.Namespace, work: Path) -> Found:
    """Runs killed at random moments, and resumed: the same bytes?"""
    corpus(args.tokens, work / "corpus.jsonl", TOKENS // 5)
    command = [sys.executable, "-m", "gptexport", "score", str(args.bundle), str(work / "corpus.jsonl"), "--logprobs"]
    command += ["--batch-tokens", "2048", "--shard-tokens", "16384", "-q", "--json", "-o"]
    began = time.monotonic()
    subprocess.run([*command, str(work / "whole")], check=True, capture_output=True)
    whole, took = files_of(work / "whole"), time.monotonic() - began
    draw, same, parts = random.Random(0), 0, []
    for number in range(KILLS):
        out = work / f"killed {number}"
        with subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            time.sleep(draw.uniform(0, 0.9 * took))
            running.send_signal(signal.SIGKILL)
        killed = running.returncode == -signal.SIGKILL
        resumed = json.loads(subprocess.run([*command, str(out)], check=True, capture_output=True).stdout)
        parts.append(resumed["found"] if killed else -1)
        same += files_of(out) == whole
    return {
        "kills": KILLS,
        "identical": same,
        "parts_found": parts,
        "parts": len(list((work / "whole/parts").iterdir())),
    }


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def memory(args: argparse.Namespace, work: Path) -> Found:
    """Resident memory after every shard: of a million documents, and of one of ten million tokens."""
    ids = np.resize(np.fromfile(args.tokens, "<u2"), 10 * TOKENS)
    (work / "long.bin").write_bytes(ids.tobytes())
    with (work / "lines.txt").open("w") as lines:
        lines.writelines(f"{n}\n" for n in range(TOKENS))
    cases = {"one document": (work / "long.bin", Reading()), "documents": (work / "lines.txt", Reading(lines=True))}
    made = {name: resident(args.bundle, path, reading, work / name) for name, (path, reading) in cases.items()}
    with load(args.bundle) as session:
        return {"parameters": session.manifest.parameters if session.manifest else None, "cases": made}


OWN_PROCESS = """
import json, sys
from pathlib import Path
from gptexport.score import Asked, Reading, score_corpus
from gptexport_runtime.text import load_tokenizer
bundle, path, out, lines = sys.argv[1:]
found = []
def resident(_now):
    found.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
asked = Asked(artifact=Path(bundle), files=[Path(path)], out=Path(out), reading=Reading(lines=lines == "True"),
              stride=120, batch_tokens=2048)
totals = score_corpus(asked, load_tokenizer("bytes"), progress=resident)
peak = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps({"documents": totals["documents"], "tokens": totals["tokens"], "resident": found, "peak": peak}))
"""


def resident(bundle: Path, path: Path, reading: Reading, out: Path) -> Found:
    command = [sys.executable, "-c", OWN_PROCESS, str(bundle), str(path), str(out), str(reading.lines)]
    made: Found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shards = made.pop("resident")
    return {
        **made,
        "shards": len(shards),
        "first": shards[0],
        "tenth": shards[min(9, len(shards) - 1)],
        "last": shards[-1],
    }


def speed(args: argparse.Namespace, work: Path) -> Found:
    """Tokens a second of `score`, beside ONNX Runtime's own on the score graph at its best batch; interleaved."""
    documents = corpus(args.tokens, work / "corpus.jsonl", TOKENS // 4)
    with load(args.bundle) as session:
        threads, T = session.threads, session.config.block_size or 1024
    raw = raw_graph(args.bundle, threads, T)
    rates = {B: raw(B, 0.5) for B in (1, 2, 4, 8, 16, 32, 64, 128)}
    best = max(rates, key=lambda B: rates[B])
    rounds, settings = [], {}
    for number in range(args.rounds):
        beside = raw(best, 4.0)
        out, now = work / str(number), list[tuple[float, Progress]]()
        asked = Asked(artifact=args.bundle, files=[work / "corpus.jsonl"], out=out, shard_tokens=1 << 16)
        score_corpus(asked, None, progress=clock(now))
        settings = json.loads((out / "score.json").read_text())
        # from the first part's end to the last one's: loading and measuring are not of the throughput
        fed = now[-1][1].computed - now[0][1].computed
        rounds.append({"raw": beside, "score": fed / (now[-1][0] - now[0][0])})
    return {
        "machine": machine(),
        "documents": len(documents),
        "threads": threads,
        "best": f"{best}x{T}",
        "rates": {f"{B}x{T}": rate for B, rate in rates.items()},
        "batch_tokens": settings["batch_tokens"],
        "rounds": rounds,
        "ratio": statistics.median(made["score"] / made["raw"] for made in rounds),
    }


def clock(now: list[tuple[float, Progress]]) -> Callable[[Progress], None]:
    return lambda progress: now.append((time.perf_counter(), progress))


def raw_graph(bundle: Path, threads: int, T: int) -> Callable[[int, float], float]:
    """Tokens a second of the graph at a batch, for some seconds; nothing of ours in between."""
    onnxruntime = import_onnxruntime()
    opened = onnxruntime.SessionOptions()
    opened.intra_op_num_threads = threads
    graph = onnxruntime.InferenceSession(bundle / SCORE.file, opened, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)

    def rate(B: int, seconds: float) -> float:
        ids = draw.integers(0, 256, (B, T))
        graph.run(None, {INPUT_IDS: ids})
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            graph.run(None, {INPUT_IDS: ids})
            calls += 1
        return float(calls * ids.size / (time.perf_counter() - began))

    return rate


def page(found: Found) -> list[str]:
    lines: list[str] = []
    for name, render in RENDER.items():
        if name in found:
            lines += [*render(found[name]), ""]
    return lines[:-1]


def _eager_page(found: Found) -> Iterator[str]:
    yield f"## Beside eager PyTorch\n\n{found['documents']:,} documents, {found['tokens']:,} tokens scored."
    yield ""
    rows = [[name, f"{found[key]:.6f}"] for name, key in NLLS.items()]
    yield from table(["", "nll, nats"], rows)
    yield (
        f"\nNoise ratio of all log-probs: {found['noise_ratio']:.2f}. By document: median "
        f"{found['document_ratio_median']:.2f}, 99 % below {found['document_ratio_99']:.2f}, largest "
        f"{found['document_ratio_max']:.2f}; {found['documents_above_2']} above 2. The mean log-prob of no document is "
        f"farther than {found['largest_mean_error']:.1e} nats from float64's."
    )


NLLS = {"`gptexport score`": "nll", "eager float32": "nll_eager", "eager float64": "nll_float64"}


def _kills_page(found: Found) -> Iterator[str]:
    known = [str(count) if count >= 0 else "finished" for count in found["parts_found"]]
    yield (
        f"## Killed and run again\n\n{found['kills']} runs killed by SIGKILL at random moments, each then run to its "
        f"end: {found['identical']} folders identical, byte for byte, to that of a run that nobody stopped. Of "
        f"{found['parts']} parts the second runs found {', '.join(known)}."
    )


def _memory_page(found: Found) -> Iterator[str]:
    yield f"## Memory\n\nA model of {found['parameters']:,} parameters. Resident, after each part is written.\n"
    rows = [
        [
            f"{case['documents']:,}",
            f"{case['tokens']:,}",
            str(case["shards"]),
            *(f"{case[key] / 1e6:,.0f} MB" for key in ("first", "tenth", "last", "peak")),
        ]
        for case in found["cases"].values()
    ]
    yield from table(["documents", "tokens", "parts", "first", "tenth", "last", "peak, adding up included"], rows)


def _speed_page(found: Found) -> Iterator[str]:
    ratios = [made["score"] / made["raw"] for made in found["rounds"]]
    yield f"## Speed\n\n{found['machine']}; {found['threads']} threads; {len(ratios)} interleaved rounds.\n"
    yield from table(
        ["batch of the raw graph", "tokens a second"], [[B, f"{r:,.0f}"] for B, r in found["rates"].items()]
    )
    yield (
        f"\n`score` chose {found['batch_tokens']} tokens at once, and feeds {found['ratio']:.2f} × as many tokens a "
        f"second as the raw graph does at {found['best']} ({min(ratios):.2f} to {max(ratios):.2f}), reading JSONL and "
        "writing Parquet included."
    )


PARTS: dict[str, Callable[[argparse.Namespace, Path], Found]] = {
    "speed": speed,
    "eager": eager,
    "kills": kills,
    "memory": memory,
}
RENDER = {"speed": _speed_page, "eager": _eager_page, "kills": _kills_page, "memory": _memory_page}


if __name__ == "__main__":
    main()
