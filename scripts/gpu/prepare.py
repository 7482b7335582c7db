"""GPT-2s of random weights and their bundles for CUDA, which the parts of the GPU check run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.bench.models import write_apart
from scripts.bench.processes import GPTEXPORT
from scripts.gpu.part import Part
from scripts.gpu.peers import LAYOUTS

XL = "xl"  # the folder of the large one


def prepare(part: Part) -> None:
    """The model's bundle in every dtype."""
    checkpoint = part.folder / part.setting.dtypes[0] / "hf"
    if error := export(checkpoint, part.setting.size, {part.folder / dtype: dtype for dtype in part.setting.dtypes}):
        raise SystemExit(error)
    part.found(bundles=list(part.setting.dtypes))
    for folder, options in LAYOUTS.items() if part.setting.lays_out_logits else ():
        bundle = {part.folder / folder: part.setting.dtype}
        if error := export(checkpoint, part.setting.size, bundle, "--graphs", "logits", *options):
            raise SystemExit(error)
        part.found(bundles=[*part.data["bundles"], folder])


def prepare_xl(part: Part) -> Path:
    """The folder of the large model, whose bundle has the logits alone."""
    folder = part.folder / XL
    if error := export(folder / "hf", part.setting.xl_size, {folder: part.setting.dtype}, "--graphs", "logits"):
        raise SystemExit(error)
    return folder


def export(checkpoint: Path, size: str, bundles: dict[Path, str], *options: str) -> str:
    """Write the checkpoint, then all its bundles at once. What is there already stays.

    Args:
        bundles: the dtype, by the folder that gets `bundle` and `hf`.

    Returns: the end of what those that failed said.
    """
    if not (checkpoint / "config.json").exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_apart(checkpoint, size, "huggingface")
    exports = []
    for folder, dtype in bundles.items():
        folder.mkdir(exist_ok=True)
        if not (folder / "hf").exists():
            (folder / "hf").symlink_to(checkpoint)
        if not (folder / "bundle").exists():
            command = [*GPTEXPORT, "onnx", str(checkpoint), "-o", str(folder / "bundle"), "-q", "--target", "cuda"]
            exports.append(subprocess.Popen([*command, "--dtype", dtype, *options], text=True, stderr=subprocess.PIPE))
    ended = [(process.communicate()[1], process.returncode) for process in exports]
    return "; ".join(errors.strip()[-500:] for errors, code in ended if code)
