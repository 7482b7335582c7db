#!/usr/bin/env bash
# README word by word, as a stranger would follow it: a fresh clone, fresh environments, each line as it stands.
#
#   scripts/check_readme.sh
#
# Takes a few minutes. Only the checkpoint is ours: a small nanoGPT of random weights with GPT-2's vocabulary. tiktoken
# downloads that vocabulary's files; without a network, TIKTOKEN_CACHE_DIR names a folder that has them.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet . "$work/gptexport"
cd "$work/gptexport"

echo "== make demo"
make --silent demo SECONDS=15

echo "== without make"
${PYTHON:-python3} -m venv "$work/venv"
PATH=$work/venv/bin:$PATH
export PIP_CONSTRAINT=$PWD/constraints.txt PIP_QUIET=1
python -m pip install --upgrade pip
shown() { sed -n "s/^\\$ \\($1 .*\\)/\\1/p" README.md; }
shown 'pip install' | while read -r line; do
    echo "\$ $line"
    bash -euc "$line"
done

echo "== each command, in its order"
mkdir -p "$work/there/out"
PYTHONPATH=$PWD python -c '
import sys
from pathlib import Path
from tests.support.builders import tiny_nanogpt
tiny_nanogpt(Path(sys.argv[1]), vocab_size=50257, n_embd=12, n_layer=1, n_head=2, block_size=64)' "$work/there/out/ckpt.pt"
readme=$PWD/README.md
shown gptexport >"$work/commands"
cd "$work/there"
while read -r line; do
    echo "\$ $line"
    bash -euc "$line" </dev/null
done <"$work/commands"

echo "== each Python snippet, in its order"
python - "$readme" <<'PY'
import re
import sys
from pathlib import Path

for snippet in re.findall(r"^```python\n(.*?)^```", Path(sys.argv[1]).read_text(), re.MULTILINE | re.DOTALL):
    exec(compile(snippet, "README.md", "exec"), {})
PY
echo "$(wc -l <"$work/commands") commands and all snippets of README ran as they stand"
