"""Write tests/runtime/data: a tiny bundle and the logits that PyTorch computes for it in float64.

The runtime's tests need neither torch nor onnx: this script ran once, where both are installed. Run it again only when
the contract changes, and commit what it writes:

    python scripts/make_runtime_fixture.py
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from gptexport.config import GPTConfig
from gptexport.models.gpt2 import GPT
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.manifest import FileEntry, Manifest
from gptexport_runtime.contract.names import (
    AXIS_B,
    AXIS_T,
    INPUT_IDS,
    LOGITS,
    MANIFEST_FILE,
    META_BLOCK_SIZE,
    META_VOCAB_SIZE,
    WEIGHTS_FILE,
)

DATA = Path(__file__).parent.parent / "tests" / "runtime" / "data"
CONFIG = GPTConfig(block_size=16, vocab_size=61, n_layer=2, n_head=4, n_embd=32)  # no two sizes alike
OPSET = 23


def random_model() -> GPT:
    """Every parameter random, biases and layer norms too: at their usual zeros and ones a dropped one goes unseen."""
    generator = torch.Generator().manual_seed(20)
    model = GPT(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0
            parameter.copy_(mean + 0.25 * torch.randn(parameter.shape, generator=generator))
    return model


def write_bundle(model: GPT, folder: Path) -> None:
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 7, dtype=torch.long),),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT_IDS],
        output_names=[LOGITS],
        dynamic_shapes=({0: AXIS_B, 1: AXIS_T},),
        verbose=False,
    )
    assert program is not None
    graph = program.model
    for node in graph.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    for value in [*graph.graph.inputs, *graph.graph.initializers.values()]:
        value.metadata_props.clear()
    graph.metadata_props[META_BLOCK_SIZE] = str(CONFIG.block_size)
    graph.metadata_props[META_VOCAB_SIZE] = str(CONFIG.vocab_size)
    ir.save(graph, folder / heads.LOGITS.file, external_data=WEIGHTS_FILE)

    def entry(name: str) -> FileEntry:
        data = (folder / name).read_bytes()
        return FileEntry(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    manifest = Manifest(
        model={"architecture": "gpt2", **CONFIG.to_dict()},
        source={"format": "random"},
        dtype="float32",
        target="portable",
        opset=OPSET,
        graphs={heads.LOGITS.name: entry(heads.LOGITS.file)},
        weights=entry(WEIGHTS_FILE),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        producer={"torch": torch.__version__},
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")


def write_expected(model: GPT, path: Path) -> None:
    ids = np.random.default_rng(21).integers(0, CONFIG.vocab_size, (3, CONFIG.block_size))
    with torch.no_grad():
        logits = model.double()(torch.from_numpy(ids)).numpy()  # (B,T,V) float64
    np.savez(path, ids=ids, logits=logits)


def main() -> None:
    bundle = DATA / "tiny"
    shutil.rmtree(DATA, ignore_errors=True)
    bundle.mkdir(parents=True)
    model = random_model()
    write_bundle(model, bundle)
    write_expected(model, DATA / "expected.npz")
    print(*(f"{path.stat().st_size:>9,} {path.relative_to(DATA)}" for path in sorted(DATA.rglob("*.*"))), sep="\n")


if __name__ == "__main__":
    main()
