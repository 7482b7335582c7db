#!/usr/bin/env bash
# For a machine with a GPU and without a network, to which files go in parts. In the project's root:
#
#     bash scripts/gpu/pack.sh
#
# writes .w/ (which git is told to ignore here): the project's wheels, and onnxruntime-gpu without what is not needed, in
# parts p0, p1 ... of 52 MiB with their SHA-256. On the machine `bash .w/go.sh first` unpacks them; see go.sh.
set -euo pipefail
VERSION=${VERSION:-1.31.1} PYTHON_VERSION=${PYTHON_VERSION:-3.12}
LEVEL=${LEVEL:-0} # of xz: 207 MB; 6 takes minutes and gives 195
grep -qx /.w/ .git/info/exclude 2> /dev/null || { [ -d .git ] && echo /.w/ >> .git/info/exclude; } || true
rm -rf .w && mkdir -p .w/whl
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$PYTHON_VERSION" --implementation cp \
  --platform manylinux_2_28_x86_64 -d "$T" "onnxruntime-gpu==$VERSION"
python3 -m zipfile -e "$T"/onnxruntime_gpu-*.whl "$T/o"
rm -rf "$T"/o/onnxruntime/{transformers,quantization,tools,ThirdPartyNotices.txt} \
  "$T"/o/onnxruntime/capi/libonnxruntime.so* "$T"/o/onnxruntime/capi/libonnxruntime_providers_tensorrt.so
tar -C "$T/o" -c . | xz "-$LEVEL" -T0 > "$T/ort.tar.xz"
sha256sum < "$T/ort.tar.xz" | cut -d' ' -f1 > .w/sha
split -b 52m -d -a 1 "$T/ort.tar.xz" .w/p
mkdir "$T/src"
cp -r pyproject.toml README.md LICENSE gptexport runtime "$T/src"
python3 -m pip wheel -q --no-deps -w .w/whl "$T/src" "$T/src/runtime"
# what the image may lack and the parts need: the command line, and the tests
python3 -m pip download -q --no-deps --only-binary=:all: -d .w/whl click pytest pluggy iniconfig packaging pygments
cp scripts/gpu/go.sh .w/
ls -la .w .w/whl
