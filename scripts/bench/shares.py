"""Where OpenVINO's time goes in a graph of logits, and how near its products are to the machine's rate.

    python -m scripts.bench.shares gpt2-bf16/ --shape 4x256 --dtype bfloat16 --out docs/measurements/shares

The rate is that of one product 1024×768×3072 in the same precision. Times by kind are OpenVINO's own profile of another
run, which profiling makes slower: they tell proportions.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.artifacts import describe_artifact
from gptexport.artifacts.bundle import Bundle
from gptexport_runtime.backends.openvino.package import PRECISIONS, core, import_openvino
from gptexport_runtime.backends.ort.providers.cpu import usable_cores
from scripts.bench.tables import machine, options, shapes_of, table, write
from scripts.bench.workers import versions

SHOWN = 6  # kinds of nodes


def main() -> None:
    parser = options(__doc__, writes="OUT.md", rounds=9)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--shape", type=shapes_of, default=[(4, 256)], help="BxT")
    parser.add_argument("--dtype", choices=PRECISIONS, default="bfloat16")
    args = parser.parse_args()
    [(B, T)] = args.shape
    bundle = describe_artifact(args.bundle)
    assert isinstance(bundle, Bundle)
    model = bundle.manifest.model
    C, L, V = (int(model[name]) for name in ("n_embd", "n_layer", "vocab_size"))
    flop = 2 * B * T * (12 * L * C * C + V * C)  # the products of a GPT-2, without attention
    told = {"INFERENCE_PRECISION_HINT": PRECISIONS[args.dtype], "INFERENCE_NUM_THREADS": usable_cores()}
    graph = core().read_model(str(args.bundle / "logits.onnx"))
    ids = np.random.default_rng(0).integers(0, V, (B, T))
    rate = product_rate(told)
    seconds = median_of(args.rounds, infer(core().compile_model(graph, "CPU", told), ids))
    profiled = core().compile_model(graph, "CPU", {**told, "PERF_COUNT": True})
    request = profiled.create_infer_request()
    for _ in range(3):
        request.infer([ids], share_outputs=True)
    kinds: Counter[str] = Counter()
    for node in request.profiling_info:
        kinds[node.node_type] += node.real_time.total_seconds()
    lines = [
        f"`{args.bundle.name}` in {args.dtype} at {B}×{T}, {machine()}; "
        + ", ".join(f"{name} {value}" for name, value in versions(("openvino",)).items())
        + ".",
        "",
        f"{1e3 * seconds:.0f} ms in all. Its products, {flop / 1e9:.0f} GFLOP, would take {1e3 * flop / rate:.0f} ms "
        f"at the {rate / 1e9:.0f} GFLOP/s of a lone one: {100 * flop / rate / seconds:.0f} %.",
        "",
        *table(
            ["nodes", "share of the profile"],
            [[kind, f"{100 * spent / kinds.total():.1f} %"] for kind, spent in kinds.most_common(SHOWN)],
        ),
    ]
    write(args.out, lines)


def product_rate(told: dict[str, Any]) -> float:
    """FLOP/s of one product of a layer."""
    ov = import_openvino()
    rows, inner, columns = 1024, 768, 3072
    draw = np.random.default_rng(0)
    x = ov.opset13.parameter([rows, inner], np.float32)
    weight = ov.opset13.constant(draw.standard_normal((inner, columns), np.float32))
    product = ov.Model([ov.opset13.matmul(x, weight, False, False)], [x])
    run = infer(core().compile_model(product, "CPU", told), draw.standard_normal((rows, inner), np.float32))
    return 2 * rows * inner * columns / median_of(61, run)


def infer(compiled: Any, value: np.ndarray) -> Callable[[], object]:
    request = compiled.create_infer_request()
    return lambda: request.infer([value], share_inputs=True, share_outputs=True)


def median_of(count: int, run: Callable[[], object]) -> float:
    """Seconds of a call, after two that do not count."""
    found = []
    for at in range(-2, count):
        began = time.perf_counter()
        run()
        if at >= 0:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    main()
