"""One head of several bundles in interleaved rounds: milliseconds a call, and the most memory that each process held.

    python -m scripts.bench.bundles int8/ int8-cache/ --head decode --shapes 1x1000,8x1000 --out docs/measurements/cache

Bundles of the same model, each in a process of its own, warm, on the device that it was written for. `decode` at B×T is
the step that reads the last of T tokens, the others in the cache. Ratios are taken within rounds, beside the first.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from gptexport.artifacts import describe_artifact
from gptexport.artifacts.bundle import Bundle
from gptexport.bench.measure import Timing, measure
from gptexport.bench.worker import workers
from gptexport_runtime.contract.heads import HEADS
from scripts.bench.tables import machine, options, shapes_of, table, write
from scripts.bench.workers import versions

PACKAGES = ("gptexport", "onnxruntime", "openvino")


def main() -> None:
    parser = options(__doc__, writes="OUT.md and OUT.json")
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--head", choices=HEADS, default="logits")
    parser.add_argument("--shapes", type=shapes_of, required=True, help="BxT,…")
    args = parser.parse_args()
    named = {path.name: path for path in args.bundles}
    specifications = {
        name: {"side": "session", "artifact": str(path), "device": device_of(path), "threads": None, "head": args.head}
        for name, path in named.items()
    }
    timings: list[Timing] = []
    peaks: dict[str, list[int | None]] = {name: [] for name in named}
    for shape in args.shapes:  # in processes of its own, whose memory is that of this shape
        with ExitStack() as stack:
            sides = stack.enter_context(workers(specifications))
            for side in sides.values():
                side.ready()
            timings += measure(sides, [shape], baseline=next(iter(named)), rounds=args.rounds)
            for name, side in sides.items():
                peaks[name].append(side(shape, settle=0, spend=0).peak)
    lines = [
        f"The head `{args.head}`, {machine()}, {args.rounds} interleaved rounds; "
        + ", ".join(f"{name} {value}" for name, value in versions(PACKAGES).items())
        + ".",
        "Median ms a call; in brackets the speed beside the first, with quartiles; then peak MB of its process.",
        "",
        *rows(named, timings, peaks),
    ]
    found = [
        {"name": t.name, "B": t.shape[0], "T": t.shape[1], "seconds": t.warm, "ratio": vars(t.ratio)} for t in timings
    ]
    write(args.out, lines, {"head": args.head, "timings": found, "peak_bytes": peaks})


def device_of(path: Path) -> str:
    """The one that its target names first, which it is written for."""
    bundle = describe_artifact(path)
    assert isinstance(bundle, Bundle)
    return bundle.manifest.runs_on[0]


def rows(named: dict[str, Path], timings: list[Timing], peaks: dict[str, list[int | None]]) -> list[str]:
    shapes = list(dict.fromkeys(t.shape for t in timings))

    def cell(name: str, at: int) -> str:
        [timing] = [t for t in timings if t.name == name and t.shape == shapes[at]]
        ratio, peak = timing.ratio, peaks[name][at]
        noisy = ", noisy" if ratio.noisy else ""
        held = f"; {peak / 1e6:.0f}" if peak is not None else ""
        speed = f"{ratio.median:.2f}×, {ratio.low:.2f} to {ratio.high:.2f}{noisy}"
        return f"{1e3 * timing.warm:.2f} ({speed}){held}"

    header = ["", *("{}×{}".format(*shape) for shape in shapes)]
    return table(header, [[name, *(cell(name, at) for at in range(len(shapes)))] for name in named])


if __name__ == "__main__":
    main()
