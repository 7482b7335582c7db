"""Export and check a large model: does it fit? GPT-2 XL's shape, 1.5B parameters, random weights.

    python -m scripts.bench.large                          # in a temporary folder, which takes 12.5 GB
    python -m scripts.bench.large --size 355M -- --quick   # a smaller one; what follows -- is for `gptexport parity`

Each step is a whole process: wall seconds from its start to its end, and the most memory of its own that it held. The
pages of mapped files, which the system takes back when it needs them, are told apart: they are not in that figure.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from scripts.bench.models import SIZES, write_apart
from scripts.bench.processes import GPTEXPORT

EVERY = 0.2  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1558M")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the bundle are kept, and found again")
    parser.add_argument("options", nargs="*", help="of gptexport parity")
    args = parser.parse_args()
    weights = 4 * SIZES[args.size].parameters
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        checkpoint, bundle = folder / "ckpt.pt", folder / "gpt"
        if not checkpoint.exists():
            write_apart(folder, args.size)
        if not bundle.exists():
            watch("export", [*GPTEXPORT, "onnx", str(checkpoint), "-o", str(bundle)], weights)
        watch("parity", [*GPTEXPORT, "parity", str(bundle), "--against", str(checkpoint), *args.options], weights)


def watch(name: str, command: list[str], weights: int) -> None:
    """Run to the end, its output shown, and say what it took."""
    began = time.monotonic()
    process = subprocess.Popen(command)
    own = mapped = 0
    while process.poll() is None:
        own, mapped = max(own, held(process.pid, "RssAnon")), max(mapped, held(process.pid, "RssFile"))
        time.sleep(EVERY)
    print(
        f"{name}: exit code {process.returncode}, {time.monotonic() - began:.0f} s, peak {own / 1e9:.2f} GB = "
        f"{own / weights:.2f} × the weights ({weights / 1e9:.2f} GB), and up to {mapped / 1e9:.2f} GB of mapped files",
        flush=True,
    )
    if process.returncode:
        raise SystemExit(process.returncode)


def held(pid: int, kind: str) -> int:
    """Bytes of one kind of memory, as Linux counts them; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")), 0)


if __name__ == "__main__":
    main()
