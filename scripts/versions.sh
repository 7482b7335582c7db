#!/usr/bin/env bash
# The tests on the oldest or the newest versions that pyproject.toml allows, in an environment of their own.
#
#     scripts/versions.sh runtime python3.13 oldest     the runtime's tests that need no torch
#     scripts/versions.sh toolkit python3.11 oldest     and the toolkit's quick ones, with the torch of constraints.txt
#     TORCH='torch==2.11.*' scripts/versions.sh ...     another torch; PyPI's for Linux bring CUDA, some gigabytes
#
# "oldest" takes the lower bounds of both pyproject.toml, or the first release that this Python has a wheel of.
set -euo pipefail
cd "$(dirname "$0")/.."
part=$1 python=$2 age=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bounds() { sed -nE 's/^[^#]*"([a-z_-]+)>=([0-9.]+)".*/\1 \2/p' pyproject.toml runtime/pyproject.toml | sort -u; }
first() { # the oldest release with a wheel for this Python, from the bound on
    local name=$1 bound=$2 version
    # pip names them where it cannot have what was asked for
    for version in $("$work/venv/bin/pip" install --no-deps --only-binary :all: "$name==0.0.0.dev0" 2>&1 |
        sed -n 's/.*(from versions: \(.*\)).*/\1/p' | tr -d , | tr ' ' '\n' | grep -v '[a-z]' | sort -V); do
        if [ "$(printf '%s\n%s\n' "$bound" "$version" | sort -V | head -1)" = "$bound" ]; then
            echo "$name==$version"
            return
        fi
    done
    echo "$name>=$bound"
}
want() {
    case $age in
    oldest) first "$1" "$(bounds | sed -n "s/^$1 //p" | head -1)" ;;
    newest) echo "$1" ;;
    esac
}

"$python" -m venv "$work/venv"
packages="$(want numpy) $(want onnxruntime) pytest hypothesis"
tests=(tests/runtime/contract tests/runtime/backends/gpu)
for name in artifact boundary engine_file files fork inputs load; do tests+=("tests/runtime/test_$name.py"); done
if [ "$part" = toolkit ]; then
    packages+=" $(want onnx) $(want onnxscript) $(want onnx-ir) $(want click) $(want safetensors)"
    packages+=" ${TORCH:-$(grep ^torch== constraints.txt)} tokenizers transformers"
    tests+=(tests/runtime tests/staging tests/parity/verdict tests/export/test_graph.py tests/export/test_heads.py
        tests/cli/test_onnx.py tests/cli/test_inspect.py)
fi
echo "$("$python" --version), $age: $packages"
# shellcheck disable=SC2086 # several words
"$work/venv/bin/pip" install --quiet --only-binary :all: $packages
"$work/venv/bin/pip" list 2>/dev/null | grep -iE '^(numpy|onnx|onnxruntime|onnxscript|onnx-ir|torch|click|safetensors) ' || true
PYTHONPATH=$PWD:$PWD/runtime "$work/venv/bin/python" -m pytest -q -p no:cacheprovider -m 'not slow and not gpu' "${tests[@]}"
