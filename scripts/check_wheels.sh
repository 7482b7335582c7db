#!/usr/bin/env bash
# Build both wheels, install them into clean environments, and use them: what a user gets, not what the tree holds.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet -c constraints.txt build
for source in runtime .; do
    "$work/build/bin/python" -m build --wheel --outdir "$work/dist" "$source" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
done
rm -rf build runtime/build
ls "$work/dist"

echo "== the runtime alone: no torch, no onnx, no click"
"$python" -m venv "$work/runtime"
"$work/runtime/bin/pip" install --quiet -c constraints.txt --find-links "$work/dist" 'gptexport-runtime[cpu]'
cp -r tests/runtime/data/tiny "$work/bundle"
(cd "$work" && runtime/bin/python - <<'PY'
import importlib.util
from importlib import metadata

import gptexport_runtime

for name in ("torch", "onnx", "click", "gptexport"):
    assert importlib.util.find_spec(name) is None, f"{name} came along with the runtime"
page = metadata.metadata("gptexport-runtime")
assert page["Version"] == gptexport_runtime.__version__ and page["License-Expression"] == "MIT", page
assert "GPTExportError" in page.get_payload(), "the distribution has no page"
with gptexport_runtime.load("bundle") as gpt:
    print("logits", gpt.logits([[1, 2, 3], [4]]).shape, "on", gpt.device)
PY
)

echo "== the toolkit"
"$python" -m venv "$work/toolkit"
"$work/toolkit/bin/pip" install --quiet -c constraints.txt --find-links "$work/dist" 'gptexport[cpu]'
cat >"$work/my_model.py" <<'PY'
import torch
from gptexport.config import GPTConfig
from gptexport.models.gpt2 import GPT

def make():
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=32))
PY
cd "$work"
toolkit/bin/gptexport --version
toolkit/bin/gptexport onnx my_model.py:make -o gpt
toolkit/bin/gptexport parity gpt --against my_model.py:make
toolkit/bin/gptexport inspect gpt
toolkit/bin/gptexport doctor
