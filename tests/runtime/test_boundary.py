"""The runtime is what a user embeds: it runs where torch, onnx, click and gptexport are not installed."""

import subprocess
import sys

from tests.support.tiny import TINY

BLOCKED = ("torch", "onnx", "click", "gptexport")

SCRIPT = f"""
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
import gptexport_runtime
assert "onnxruntime" not in sys.modules, "onnxruntime was imported before load()"
for module in pkgutil.walk_packages(gptexport_runtime.__path__, "gptexport_runtime."):
    importlib.import_module(module.name)
assert "onnxruntime" not in sys.modules, "onnxruntime was imported before load()"
with gptexport_runtime.load({str(TINY)!r}, "cpu") as session:
    print(session.logits([[1, 2, 3]]).shape, session.last_logits([[1], [2, 3]]).shape)
"""


def test_runs_with_torch_onnx_click_and_gptexport_blocked() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("(1, 3, 61) (2, 61)\n", "")
