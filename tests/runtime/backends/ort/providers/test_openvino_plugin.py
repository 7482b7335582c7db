"""OpenVINO's plugin: what it computes, as the genuine one does, and each reason that it may not run for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.backends.openvino.package import properties
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.package import import_onnxruntime
from gptexport_runtime.backends.ort.providers import openvino_plugin, provider
from gptexport_runtime.backends.ort.providers.cpu import usable_cores
from gptexport_runtime.backends.ort.providers.openvino_plugin import OPENVINO_PLUGIN
from tests.support.builders import tiny_nanogpt
from tests.support.llama_builders import theirs
from tests.support.tiny import TINY

# in a process of its own: a plugin is registered for good, and the CPU is said to be Intel's. OpenVINO's own package
# would be taken before it
RUN = """
import json, sys
import numpy as np
from scripts.bench.intel import pretend_intel

pretend_intel()
import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.parity import check_parity
from gptexport_runtime.backends.ort.probe import probe_providers
from gptexport_runtime.backends.ort.providers import PROVIDERS
from gptexport_runtime.backends.ort.providers.openvino import OPENVINO

PROVIDERS.remove(OPENVINO)
source, tiny, *bundles = sys.argv[1:]
found = {}
for bundle in bundles:
    with gptexport_runtime.load(bundle) as gpt:
        ids = np.arange(10).reshape(2, 5)
        logits, last = gpt.logits(ids), gpt.last_logits(ids)
        new = gpt.generate([[1, 2]], max_new_tokens=3, temperature=0)[0]
        scored = gpt.score(ids).logprobs
        device = f"{gpt.backend} on {gpt.device}"
    verdict = check_parity(bundle, load_checkpoint(source), shapes=[(1, 1), (3, 17)], device="openvino").verdict
    found[bundle] = [device, float(abs(logits[:, -1] - last).max()), len(new), bool(verdict), list(scored.shape)]
try:
    gptexport_runtime.load(tiny, "openvino")
except gptexport_runtime.BackendUnavailableError as error:
    found["pieces"] = str(error)
probe = probe_providers()
found["about"] = next(each.about for each in probe.providers if each.device == "openvino plugin")
found["export_with"] = probe.export_with
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec(openvino_plugin.MODULE) is None, reason="it has wheels for x86-64 alone")
@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_genuine_plugin(kind: str, tmp_path: Path) -> None:
    """It takes all graphs whole, passes parity in both precisions, and refuses a graph with ONNX's Attention."""
    if kind == "llama":
        source = tmp_path / "llama"
        theirs("Llama", num_key_value_heads=2).save_pretrained(source)
    else:
        source = tiny_nanogpt(tmp_path / "ckpt.pt")
    bundles = {dtype: str(tmp_path / dtype) for dtype in ("float32", "bfloat16")}
    for dtype, out in bundles.items():
        export_onnx(load_checkpoint(str(source)), Path(out), target="openvino", dtype=dtype)
    command = [sys.executable, "-c", RUN, str(source), str(TINY / "logits.onnx"), *bundles.values()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for out in bundles.values():
        device, difference, new, verdict, scored = found[out]
        assert (device, new, verdict, scored) == ("onnxruntime on openvino", 3, True, [2, 4]) and difference < 0.05
    assert "pieces on openvino, which does not take Attention" in found["pieces"]
    assert openvino_plugin.PACKAGE in found["about"] and found["export_with"]


def test_what_it_is_told() -> None:
    cores = usable_cores()
    for threads, spin, pinned in ((cores, True, "YES"), (cores, False, "NO"), (cores + 1, True, "YES")):
        told = OPENVINO_PLUGIN.options(OpenOptions(threads=threads, spin=spin, dtype="bfloat16"), False)
        assert json.loads(told["load_config"]) == {
            "CPU": {
                "INFERENCE_PRECISION_HINT": "bf16",
                "INFERENCE_NUM_THREADS": str(threads),
                "ENABLE_CPU_PINNING": pinned,
            }
        }
    if cores > 1:
        assert properties(OpenOptions(threads=1))["ENABLE_CPU_PINNING"] == "NO"


def test_a_plugin_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_registered", set())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    ort: Any = SimpleNamespace(__version__="1.31.1", get_ep_devices=list, register_execution_provider_library=None)
    reason = OPENVINO_PLUGIN.why_not(ort)
    assert reason == "onnxruntime-ep-openvino is not installed: `pip install gptexport-runtime[openvino-plugin]`."


def test_an_onnxruntime_that_takes_no_plugins() -> None:
    old: Any = SimpleNamespace(__version__="1.22.0")
    assert "1.22.0 takes no plugins: they need 1.23 or newer" in str(OPENVINO_PLUGIN.why_not(old))


def test_a_plugin_for_another_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own refusal of a library that has not what it looks for."""
    ort: Any = import_onnxruntime()
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_shared.so"
    other = dataclasses.replace(OPENVINO_PLUGIN, name="OtherExecutionProvider", library=lambda: library)
    monkeypatch.setattr(openvino_plugin, "OPENVINO_PLUGIN", other)
    reason = str(OPENVINO_PLUGIN.why_not(ort))
    assert f"{library.name} does not load into onnxruntime {ort.__version__}: " in reason
    assert reason.endswith("goes with it: `pip install gptexport-runtime[openvino-plugin]`.")


def test_a_plugin_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_registered", set())
    cpu = SimpleNamespace(ep_name="CPUExecutionProvider", device=SimpleNamespace(vendor="AMD"))
    gpu = SimpleNamespace(ep_name=OPENVINO_PLUGIN.name, ep_metadata={"ov_device": "GPU"})
    ort: Any = SimpleNamespace(
        __version__="1.31.1",
        get_ep_devices=lambda: [cpu, gpu],
        register_execution_provider_library=lambda _name, _path: None,
    )
    assert "takes those of Intel alone, and ONNX Runtime says that this one is of AMD" in str(
        OPENVINO_PLUGIN.why_not(ort)
    )
    with pytest.raises(BackendUnavailableError, match="finds no device"):
        OPENVINO_PLUGIN.attach(ort, None, {})
