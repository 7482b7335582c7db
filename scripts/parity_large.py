"""Export and check a large model: does it fit? GPT-2 XL's shape, 1.5B parameters, random weights.

    python scripts/parity_large.py                          # in a temporary folder, which takes 12.5 GB
    python scripts/parity_large.py --size 355M -- --quick   # a smaller one; what follows -- is for `gptexport parity`

Each step is a whole process: wall seconds from its start to its end, and its peak resident memory, in which the pages
of mapped files count too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_export import CONFIGS, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CONFIGS, default="1558M")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the bundle are kept, and found again")
    parser.add_argument("options", nargs="*", help="of gptexport parity")
    args = parser.parse_args()
    weights = 4 * CONFIGS[args.size].parameters
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        checkpoint, bundle = folder / "ckpt.pt", folder / "gpt"
        if not checkpoint.exists():
            script = str(Path(__file__).with_name("bench_export.py"))
            subprocess.run([sys.executable, script, "--size", args.size, "--write", str(folder)], check=True)
        cli = [sys.executable, "-m", "gptexport"]
        if not bundle.exists():
            tell("export", [*cli, "onnx", str(checkpoint), "-o", str(bundle)], weights)
        tell("parity", [*cli, "parity", str(bundle), "--against", str(checkpoint), *args.options], weights)


def tell(name: str, command: list[str], weights: int) -> None:
    """Run to the end, its output shown, and say what it took."""
    made = run(command, show=True)
    print(
        f"{name}: {made.seconds:.0f} s, peak {made.peak_mb / 1000:.2f} GB = {made.peak_mb * 1e6 / weights:.2f} × "
        f"the weights ({weights / 1e9:.2f} GB)",
        flush=True,
    )


if __name__ == "__main__":
    main()
